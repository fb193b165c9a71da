"""Writes trained detectors as files that run without kdlib, ONNX or torch.export, with all that
their user must know.
"""
