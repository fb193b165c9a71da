"""kdlib: distil a large LiDAR 3D detector into a small, fast one (SparseKD, NeurIPS 2022), on a
laptop or a GPU server.

The thin package, enough for a paper: from Waymo's files to a trained, measured student::

    types     what travels between stages: Frame, Batch, HeadOutput, Detections, LossTerms; shapes
    errors    what a user's mistake raises
    config    every setting, as frozen dataclasses
    zoo       models and teacher-student pairs by name
    records   JSON files of a run and the card of a number
    models    detectors (build.py makes one), geometry, sparse convolution, PV-RCNN++, losses/
    kd        distillation losses (logit.py, feature.py, label.py), teacher, start, objective
    waymo     v1 TFRecord and v2 Parquet files to frames
    data      frames to a prepared store, store to batches; frames and scans of your own
    metric    tables of boxes to Waymo's AP and APH, with intervals
    training  one job: child process, loop, launchers

What stands around it::

    simulate, viz, profiling   streets in Waymo's file format, pictures, costs and latency
    lab                        what notebooks call: runs, comparisons, studies, reports
    tools                      what only the command line reaches: bench, judge, scans, export, ...
    cli                        python -m kdlib

Walls (``tests/test_layers.py``): the thin package imports nothing of what stands around it;
``models`` and ``kd`` know no data, no metric and no training; ``viz`` and ``profiling`` take
finished results; ``lab`` reaches no tool; no import runs in a circle.

Public are the names in ``tests/api.json``: what README and notebooks use and what own models,
losses and datasets build on. Everything else is internal and may change. Start with ``kdlib.zoo``,
``kdlib.types`` and ``kdlib.config``.
"""

__version__ = "0.1.0"
