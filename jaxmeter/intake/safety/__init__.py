"""Whether a stranger's model file is safe to open."""
