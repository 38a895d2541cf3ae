"""Signals that are one number a record and layer or variable."""
