"""Pictures, interactive scenes and the report: finished results as plain arrays in, figures and
files out.
"""
