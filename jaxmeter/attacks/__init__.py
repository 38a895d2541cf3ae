"""Attacks as configs: what they read, and how they come to scores."""
