"""Networks for texts, which are rows of token ids and a mask: one file for each family."""
