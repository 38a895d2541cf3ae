"""The command line of a study's file."""
