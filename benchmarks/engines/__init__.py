"""`udean-bench`: what each engine gives on this machine, against the PyTorch path."""
