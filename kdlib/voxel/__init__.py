"""Points in, voxels of a model's own grid out."""
