"""A trained detector in, a file that runs without kdlib out: ONNX or torch.export, with all that its user must know beside it."""
