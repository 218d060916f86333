"""What a machine gives a run, what is wrong with it, and how fast a chip could at best run a program."""
