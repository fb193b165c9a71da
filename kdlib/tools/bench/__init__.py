"""Measurements behind ``python -m kdlib bench``: each prints, in one run, ratios and rates and the
machine they were taken on.
"""
