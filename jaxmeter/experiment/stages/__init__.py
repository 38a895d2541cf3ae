"""The stages of a run, each a function with a folder of its own."""
