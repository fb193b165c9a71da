"""The Waymo detection metric and what surrounds it: prediction tables in, AP, APH, intervals and curves out.

- predict.py: detector + dataset -> predictions table
- columns.py: tables or Parquet files, batch by batch -> columns; tables.py: columns of both sides -> boxes by frame, ground truth
  normalised; preflight.py says what is wrong with them
- shards.py: objects -> breakdowns (class, class and range)
- iou.py: objects of one frame -> candidate pairs with their 3D IoU
- assignment.py: one IoU matrix -> one matching, with the official order among ties
- matching.py: candidate pairs -> matches and the scores between which they hold; counting.py -> TP, FP, FN per cutoff
- ap.py: counts -> precision, recall, AP, APH
- waymo_metrics.py: all of it -> EvalResult
- official.py: the same boxes -> Waymo's own numbers, by official_child.py in another Python; duel.py: both side by side
- export.py: predictions -> the leaderboard's file (objects_proto.py) and back
- judge.py: what `python -m kdlib evaluate` does
- bootstrap.py: EvalResults of several arms and seeds -> intervals
"""
