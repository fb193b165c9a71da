"""Many runs at once: batches over GPUs and clusters, their status and histories, a store
verified.
"""
