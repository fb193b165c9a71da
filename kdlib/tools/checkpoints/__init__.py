"""Weights from and for elsewhere: OpenPCDet and SparseKD checkpoints, a student started from a
teacher.
"""
