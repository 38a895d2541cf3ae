"""Models of tf_keras and TensorFlow, by way of ONNX."""
