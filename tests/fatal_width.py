"""What fatal_study imports: it has to go along."""

WIDTH = 8
