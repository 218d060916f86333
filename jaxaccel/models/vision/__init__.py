"""Image classifiers in plain Flax NNX: nothing here depends on the rest of jaxaccel."""
