"""Waymo Open Dataset files in, frames out; numpy and pyarrow only, no TensorFlow, no torch."""
