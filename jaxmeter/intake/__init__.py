"""Model formats in, targets out: the only code that knows Keras, TensorFlow and ONNX.

Frameworks are imported when a model that needs them is loaded, not before.
"""

from jaxmeter.intake.loading import load_target

__all__ = ["load_target"]
