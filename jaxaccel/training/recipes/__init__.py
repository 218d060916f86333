"""One file per recipe: `recipe()` and a docstring with paper, data, hardware, expected result and command."""
