"""Layers and blocks that several models share, in plain Flax NNX."""
