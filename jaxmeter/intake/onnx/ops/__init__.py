"""ONNX operators in JAX."""
