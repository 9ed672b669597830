"""From files to batches of slabs."""
