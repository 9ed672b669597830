"""`udean-bench`: how fast each engine is on this machine, against the PyTorch path."""
