"""The prepared store and what training reads from it: frames in, samples and batches out."""
