"""Training: a job file goes in, a run folder with history, weights and result comes out of a child
process.
"""
