"""Equivalent forms of the operations that XLA runs at very different speeds, and which of them a backend runs fast."""
