"""Channels removed for good: which axes of which parameters go together, and what is left without them."""
