"""What makes it safe to open a stranger's file."""
