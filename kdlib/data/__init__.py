"""The prepared store, and the samples and batches that training reads from it."""
