"""Records, their splits, and the files they come from."""
