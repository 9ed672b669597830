"""The alternative to this toolkit: the same weights in PyTorch behind MONAI's or TorchIO's windows."""
