"""Whether an SR volume may be trusted: what becomes of lesions, edges and noise, what is made of nothing."""
