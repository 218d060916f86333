"""jaxaccel."""
