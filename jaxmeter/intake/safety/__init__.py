"""What a file of a stranger may hold, decided before any framework opens it."""
