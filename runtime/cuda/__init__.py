"""CUDA: one pipeline for every engine of a GPU, the device it runs on and the kernels it launches."""

from .pipeline import CudaPipeline
from .slots import CudaEngine, Slot

__all__ = ["CudaEngine", "CudaPipeline", "Slot"]
