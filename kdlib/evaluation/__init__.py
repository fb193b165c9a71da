"""The Waymo detection metric and what surrounds it: prediction tables in, AP, APH, intervals and curves out.

- predict.py: detector + dataset -> predictions table
- tables.py: tables -> arrays (validated, ground truth normalised); preflight.py says what is wrong with them
- shards.py: objects -> breakdowns (class, class and range)
- iou.py: objects of one frame -> candidate pairs with their 3D IoU
- assignment.py: one IoU matrix -> one matching, with the official order among ties
- matching.py: candidate pairs -> matches and the scores between which they hold; counting.py -> TP, FP, FN per cutoff
- ap.py: counts -> precision, recall, AP, APH
- waymo_metrics.py: all of it -> EvalResult
- bootstrap.py: EvalResults of several arms and seeds -> intervals
"""
