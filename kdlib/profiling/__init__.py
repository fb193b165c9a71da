"""A model goes in; what it costs comes out: parameters, multiply-accumulates, activations, milliseconds on this machine."""
