"""What only the command line reaches: measurements, servers, the official judge, own scans,
exports, checkpoints.
"""
