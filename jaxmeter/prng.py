"""Random streams by name: what one step draws does not depend on which other steps there are."""

import zlib

import jax


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of the stream of that name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
