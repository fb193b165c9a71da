"""What the notebooks call: runs and their stages, comparisons, studies, reports; nothing of
``tools`` is imported here.
"""
