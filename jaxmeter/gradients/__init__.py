"""Per-example gradients, exact and factored."""
