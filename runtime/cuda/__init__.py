"""CUDA: one pipeline for every GPU engine, the device it runs on and the kernels it launches."""

from .engine import CudaEngine, Slot
from .pipeline import CudaPipeline

__all__ = ["CudaEngine", "CudaPipeline", "Slot"]
