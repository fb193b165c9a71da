"""The detectors, under the original's tensor names, and what they are made of."""
