"""Points in, head maps and boxes out: the detectors, under the original's tensor names."""
