"""Models as files: their cards, TensorRT plans, and the embedded model."""
