"""Functions of one record over many records, so many at once as the processor's caches hold.

On CPU, the intermediate arrays of a large batch leave the caches, and every run gets fresh memory
for them from the operating system, page by page. A loop over chunks of records, inside the compiled
program, uses the same few megabytes again and again. Each record's numbers are those of `jax.vmap`
up to rounding. On other platforms there are no chunks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxmeter.jaxpr.equations import Body, as_function, body_of
from jaxmeter.jaxpr.memory import peak, tree_bytes

# Measured by benchmarks/gradients.py on two CPU cores with 1 MiB of second-level cache each.
CACHE = 2**24  # bytes of intermediate arrays of a chunk
_LEAST = 8  # records in a chunk, so that weights are not read for too few


def by_chunks(fun: Callable[..., Any], *args: Array) -> Any:
    """`jax.vmap(fun)(*args)` over axis 0, in chunks on CPU.

    Results larger than what making them takes are not chunked: that would write them twice.

    >>> bool((by_chunks(lambda x: x**2, jnp.arange(100.0)) == jnp.arange(100.0) ** 2).all())
    True
    """
    n = len(args[0])
    if jax.default_backend() != "cpu" or n <= _LEAST:
        return jax.vmap(fun)(*args)
    body, shape = _traced(fun, args)
    work = peak(body.jaxpr, body.jaxpr.invars, results=False)
    chunk = n if tree_bytes(shape) > work else _chunk(n, work, tree_bytes(body.consts))
    tree = jax.tree.structure(shape)

    def run(*args: Array) -> Any:  # traced once
        return jax.tree.unflatten(tree, as_function(body)(*args))

    if chunk == n:
        return jax.vmap(run)(*args)
    found = lax.map(lambda rows: jax.vmap(run)(*(a[rows] for a in args)), _windows(n, chunk))
    again = -n % chunk

    def joined(leaf: Array) -> Array:
        if not again:
            return leaf.reshape(n, *leaf.shape[2:])
        whole = leaf[:-1].reshape(-1, *leaf.shape[2:])
        return jnp.concatenate([whole, leaf[-1, again:]])

    return jax.tree.map(joined, found)


def gradient_by_chunks(
    losses: Callable[..., Array], params: dict[str, Array], *args: Array
) -> dict[str, Array]:
    """Gradient of `losses(params, *rows).sum()` over all rows of `args`, chunk by chunk on CPU.

    Not where the sum, which each chunk reads and writes, would fill the cache by itself, nor where
    there is little to gain.

    >>> rows, params = jnp.arange(100.0), {"w": jnp.ones(())}
    >>> float(gradient_by_chunks(lambda p, x: p["w"] * x, params, rows)["w"])
    4950.0
    """
    n = len(args[0])

    def summed(params: dict[str, Array], is_new: Array | None, *args: Array) -> Array:
        found = losses(params, *args)
        return jnp.sum(found if is_new is None else jnp.where(is_new, found, 0))

    gradient = jax.grad(summed)
    if jax.default_backend() != "cpu" or n <= _LEAST:
        return gradient(params, None, *args)
    body, shape = _traced(lambda *row: gradient(params, None, *(a[None] for a in row)), args)
    work = peak(body.jaxpr, body.jaxpr.invars, results=False)
    light = n * work < 4 * CACHE or tree_bytes(shape) > CACHE // 4
    chunk = n if light else _chunk(n, work, tree_bytes(body.consts))
    if chunk == n:
        return gradient(params, None, *args)

    def step(found: dict[str, Array], rows: Array) -> tuple[dict[str, Array], None]:
        is_new = None if not n % chunk else rows >= seen(rows)
        mine = gradient(params, is_new, *(a[rows] for a in args))
        return jax.tree.map(jnp.add, found, mine), None

    def seen(rows: Array) -> Array:
        """How many rows came before, of which the last window has some again."""
        return -(-rows[0] // chunk) * chunk

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
    return lax.scan(step, zeros, _windows(n, chunk))[0]


def _traced(fun: Callable[..., Any], args: tuple[Array, ...]) -> tuple[Body, Any]:
    rows = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in args]
    closed, shape = jax.make_jaxpr(fun, return_shape=True)(*rows)
    return body_of(closed), shape


def _chunk(n: int, work: int, shared: int = 0) -> int:
    """Records in a chunk, if each takes `work` bytes: a divisor of n if one is about as large.

    All at once if what each chunk reads again, `shared` bytes of weights, is more than what would
    leave the cache.
    """
    most = max(_LEAST, CACHE // max(work, 1))
    if most >= n:
        return n
    chunk = max((c for c in range(most // 2 + 1, most + 1) if n % c == 0), default=most)
    again = (-(-n // chunk) - 1) * shared
    return n if again > n * work - CACHE else chunk


def _windows(n: int, chunk: int) -> Array:
    """The rows of each chunk `[chunks, chunk]`; the last ones end with the last row."""
    starts = jnp.minimum(jnp.arange(0, n, chunk), n - chunk)
    return starts[:, None] + jnp.arange(chunk)[None]
