"""Programs as JAX traces them: what their equations say, what they cost, faster forms of them."""
