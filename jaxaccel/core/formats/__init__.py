"""Files of others, read as data: bounded in memory and time by the size of the file, and nothing in them is run."""
