"""The store: entries by what they follow from, written whole or not at all."""
