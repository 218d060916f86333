"""What jaxaccel is measured against, and what runs in a process of its own; imported when a benchmark asks for it."""
