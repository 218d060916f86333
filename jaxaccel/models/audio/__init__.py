"""Networks of speech and sounds, which are frames of features and a mask: one file for each family."""
