"""Runs: one, a sweep of them, on one machine or many."""
