"""What a model costs: parameters, multiply-accumulates, activations, milliseconds on this
machine.
"""
