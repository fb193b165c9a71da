"""kdlib: distil a large LiDAR 3D detector into a small, fast one (SparseKD, NeurIPS 2022), on a laptop or a GPU server.

How the data flows (a module imports only from those above it)::

    Waymo v1 TFRecord | v2 Parquet | simulate
          -> waymo   Frame (numpy)
          -> data    prepared store -> Sample -> Batch (torch)
          -> voxel   VoxelBatch -> models (voxels through sparse) HeadOutput -> Detections
                                  -> losses, kd: LossTerms -> training
          -> evaluation   tables of boxes -> Waymo metric
          -> profiling, bench   what it costs and how fast it is
          -> viz     pictures

The notebooks call ``pipeline`` (data, teacher, students), ``explore``, ``comparison`` and ``costs``; ``execute`` runs them
headlessly by the names in ``profiles``, ``report`` and ``publish`` write down what came out, ``cli`` is ``python -m kdlib``.

Start with ``kdlib.zoo`` (models and pairs by name), ``kdlib.types`` (what travels) and ``kdlib.config`` (every setting).
"""

__version__ = "0.1.0"
