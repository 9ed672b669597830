"""Whether an SR volume can be trusted: what happens to lesions, edges and noise, and what is invented."""
