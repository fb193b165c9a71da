"""The Waymo detection metric, bit for bit the official one, and what surrounds it, in the order
data takes.

- predict.py: a detector and a dataset to a predictions table
- box_tables.py, loading.py: tables or Parquet files of both sides, checked, to boxes by frame
  (objects.py)
- shards.py: the breakdown each box belongs to; iou.py: pairs that may be matched
- matching.py, assignment.py: the official matching at every score cutoff; counts.py: true and false
  positives, misses
- ap.py: counts to precision, recall, AP and APH; waymo_metrics.py: all of it
- bootstrap.py: results of several arms and seeds to intervals
"""
