"""One run: from a recipe to the loop, its directory, its checkpoints and its result."""
