"""Gradients seen from few directions: the mean, inner products, projections, cosines, the input.

Whatever needs no gradient is computed without: an inner product with a direction is the derivative
of the loss along it (forward mode, one pass), and a random projection takes factored gradients
apart block by block.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxmeter.gradients.factors import Term, materialised, matrix_factors
from jaxmeter.gradients.per_example import cross_entropy, gradient_norms, of_loss
from jaxmeter.jaxpr.chunks import by_chunks, gradient_by_chunks
from jaxmeter.jaxpr.lowering import lowered
from jaxmeter.target import Target, resolve_variables
from jaxmeter.terminal import printable

_BLOCK = 2**22  # random signs that are held at once


def inner_products(
    target: Target, x: ArrayLike, y: ArrayLike, direction: Mapping[str, ArrayLike]
) -> Array:
    """Inner product of each record's gradient with one direction in the space of parameters.

    That is how fast its loss changes along the direction: one forward-mode pass, in which no
    gradient is formed.

    Args:
      target: the classifier; its functions must be differentiable in forward mode (`custom_vjp`
        is not).
      x: records `[n, ...]`.
      y: labels, int `[n]`.
      direction: `{variable name: array of the variable's shape}`; what is not named counts as 0.

    Returns:
      `[n]`.

    Raises:
      ValueError: for a name the target does not have, or an array of another shape.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))})
    >>> inner_products(net, jnp.ones((1, 3)), jnp.zeros(1, int), {"w": jnp.eye(3, 2)}).tolist()
    [0.0]
    """
    for name, value in direction.items():
        if name not in target.params:
            resolve_variables(target.spec, [name])  # says which are near
            raise ValueError(
                f"the direction names the layer {name!r}; name its variables: "
                f"{', '.join(map(printable, resolve_variables(target.spec, [name])))}."
            )
        shape = jnp.shape(target.params[name])
        if jnp.shape(value) != shape:
            raise ValueError(
                f"the direction's {name!r} has shape {jnp.shape(value)}, the variable {shape}."
            )
    tangents = {
        name: jnp.asarray(value, target.params[name].dtype) for name, value in direction.items()
    }
    return _inner_products(target, jnp.asarray(x), jnp.asarray(y), tangents)


def projections(
    target: Target,
    x: ArrayLike,
    y: ArrayLike,
    *,
    seed: int,
    dimensions: int,
    params: Sequence[str | int] | None = None,
) -> Array:
    """Each record's gradient, all chosen variables together, projected to few dimensions at random.

    The projection is a matrix of independent signs times `1 / sqrt(dimensions)` (Achlioptas 2003,
    doi:10.1016/S0022-0000(03)00025-4). It depends on the seed and on the names and shapes of the
    variables only, so projections of targets of one architecture can be compared. An inner product
    of two gradients g, h becomes an unbiased estimate with a standard deviation of at most
    `sqrt((|g|^2 |h|^2 + <g, h>^2) / dimensions)`; squared lengths are right to a relative
    `sqrt(2 / dimensions)`. For all distances among n records to be right to a share e of
    themselves (Johnson and Lindenstrauss), take `dimensions >= 8 log(n) / (e^2 - 2 e^3 / 3)` and
    more.

    The matrix is made block by block and never held. Gradients of kernels that meet few rows are
    never held either; other variables' are, for all n records: pass records in batches.

    Args:
      target: the classifier.
      x: records `[n, ...]`.
      y: labels, int `[n]`.
      seed: which projection.
      dimensions: how many numbers a record gets.
      params: variables as in `per_example_gradients`; None for all.

    Returns:
      `[n, dimensions]`, float32 or wider.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))})
    >>> projections(net, jnp.ones((5, 3)), jnp.zeros(5, int), seed=0, dimensions=4).shape
    (5, 4)
    """
    if dimensions < 1:
        raise ValueError(f"dimensions is {dimensions}; a projection has at least one.")
    names = resolve_variables(target.spec, params)
    return _projections(target, jnp.asarray(x), jnp.asarray(y), seed, dimensions, names)


def mean_gradient(
    target: Target, x: ArrayLike, y: ArrayLike, params: Sequence[str | int] | None = None
) -> dict[str, Array]:
    """Gradient of the mean cross-entropy loss over all records, as a training step has it.

    One backward pass for all variables; no record's own gradient is formed.

    Args:
      target: the classifier.
      x: records `[n, ...]`.
      y: labels, int `[n]`.
      params: variables as in `per_example_gradients`; None for all.

    Returns:
      `{variable name: array of the variable's shape}`, in model order.

    Raises:
      ValueError: for a name the target does not have, or no records.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))})
    >>> mean_gradient(net, jnp.ones((5, 3)), jnp.zeros(5, int))["w"][0].tolist()
    [-0.5, 0.5]
    """
    names = resolve_variables(target.spec, params)
    if not np.shape(x)[0]:
        raise ValueError("there are no records, so there is no mean gradient.")
    found = _mean_gradient(target, jnp.asarray(x), jnp.asarray(y), names)
    return {name: found[name] for name in names}  # jit sorted the keys


def cosines_to_mean(
    target: Target,
    x: ArrayLike,
    y: ArrayLike,
    reference: tuple[ArrayLike, ArrayLike],
    params: Sequence[str | int] | None = None,
) -> Array:
    """Cosine of each record's gradient and the mean gradient of a reference set.

    Args:
      target: the classifier.
      x: records `[n, ...]`.
      y: labels, int `[n]`.
      reference: the records and labels whose mean gradient is meant, `[m, ...]` and `[m]`.
      params: variables as in `per_example_gradients`, taken together as one vector; None for all.

    Returns:
      `[n]` in [-1, 1]; 0 where a gradient is zero.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))})
    >>> x, y = jnp.array([[1.0, 0, 0], [0, 1, 0]]), jnp.zeros(2, int)
    >>> cosines_to_mean(net, x, y, reference=(x[:1], y[:1])).tolist()
    [1.0, 0.0]
    """
    names = resolve_variables(target.spec, params)
    if not names:
        raise ValueError("no variables are chosen, and gradients without numbers have no cosine.")
    if not np.shape(reference[0])[0]:
        raise ValueError("the reference set is empty, so it has no mean gradient.")
    mean = mean_gradient(target, *reference, names)
    # Lengths are divided out first: the product of two small ones may be too small for the type.
    unit, _ = _unit(mean)
    products = inner_products(target, x, y, unit)
    norms = jnp.stack(list(gradient_norms(target, x, y, names).values()))
    largest = norms.max(axis=0)
    safe = jnp.where(largest == 0, 1, largest)
    length = jnp.sqrt(jnp.sum(jnp.square(norms / safe[None]), axis=0))
    return jnp.clip(products / safe / jnp.where(largest == 0, 1, length), -1, 1)


def input_gradients(target: Target, x: ArrayLike, y: ArrayLike) -> Array:
    """Gradients of each record's cross-entropy loss with respect to the record itself.

    Args:
      target: the classifier.
      x: records `[n, ...]`.
      y: labels, int `[n]`.

    Returns:
      The shape of `x`.

    Raises:
      ValueError: if the target takes integers (token indices, say), which have no gradient.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.eye(2)})
    >>> input_gradients(net, jnp.zeros((1, 2)), jnp.zeros(1, int)).tolist()
    [[-0.5, 0.5]]
    """
    if not jnp.issubdtype(target.spec.input_dtype, jnp.inexact):
        raise ValueError(
            f"the target takes {target.spec.input_dtype}: whole numbers have no gradient. Take the "
            "gradients of its first layer's variables (an embedding's rows) instead."
        )
    return _input_gradients(target, jnp.asarray(x), jnp.asarray(y))


def input_gradient_norms(target: Target, x: ArrayLike, y: ArrayLike) -> Array:
    """Euclidean norms of `input_gradients`, `[n]`.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.eye(2)})
    >>> f"{input_gradient_norms(net, jnp.zeros((1, 2)), jnp.zeros(1, int))[0]:.4f}"
    '0.7071'
    """
    found = input_gradients(target, x, y)
    return jnp.sqrt(jnp.sum(jnp.square(found).reshape(len(found), -1), axis=1))


def _losses(target: Target, params: Mapping[str, Array], x: Array, y: Array) -> Array:
    """Each record's loss by itself, `[n]`, with some parameters replaced."""

    def forward(params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        return target.apply(params, state, x[None]).logits

    def one(x: Array, y: Array) -> Array:
        logits = lowered(forward)({**target.params, **params}, target.state, x)
        return cross_entropy(logits[0], y)

    return jax.vmap(one)(x.astype(target.spec.input_dtype), y)


@jax.jit
def _inner_products(target: Target, x: Array, y: Array, direction: dict[str, Array]) -> Array:
    chosen = {name: target.params[name] for name in direction}
    _, found = jax.jvp(lambda params: _losses(target, params, x, y), (chosen,), (direction,))
    return found


@partial(jax.jit, static_argnames=("names",))
def _mean_gradient(target: Target, x: Array, y: Array, names: tuple[str, ...]) -> dict[str, Array]:
    def losses(params: dict[str, Array], x: Array, y: Array) -> Array:
        # All records at once, as in training; in a loop, so that convolutions are fast there.
        forward = lowered(target.apply, looped=True)
        out = forward({**target.params, **params}, target.state, x.astype(target.spec.input_dtype))
        return cross_entropy(out.logits, y) / n

    n = len(x)
    chosen = {name: target.params[name] for name in names}
    return gradient_by_chunks(losses, chosen, x, y)


@jax.jit
def _unit(vector: dict[str, Array]) -> tuple[dict[str, Array], Array]:
    """A vector of length 1, or zero, and the length."""
    largest = jnp.stack([jnp.max(jnp.abs(v), initial=0) for v in vector.values()]).max()
    safe = jnp.where(largest == 0, 1, largest)
    length = jnp.sqrt(sum(jnp.sum(jnp.square(v / safe)) for v in vector.values()))
    whole = jnp.where(largest == 0, 1, length)
    return {name: v / safe / whole for name, v in vector.items()}, safe * length


@jax.jit
def _input_gradients(target: Target, x: Array, y: Array) -> Array:
    x = x.astype(target.spec.input_dtype)

    def one(x: Array, y: Array) -> Array:
        return jax.grad(lambda x: _losses(target, {}, x[None], y[None])[0])(x)

    return by_chunks(one, x, y)


@partial(jax.jit, static_argnames=("dimensions", "names"))
def _projections(
    target: Target, x: Array, y: Array, seed: ArrayLike, dimensions: int, names: tuple[str, ...]
) -> Array:
    def one(x: Array, y: Array) -> Array:
        terms = of_loss(target, x.astype(target.spec.input_dtype), y, names)[2]
        return projected(target, terms, seed=seed, dimensions=dimensions)

    return by_chunks(one, x, y)


def projected(
    target: Target, terms: Mapping[str, Term], *, seed: ArrayLike, dimensions: int
) -> Array:
    """`projections` of one record, `[dimensions]`, from its gradients by variable."""
    key = jax.random.key(seed)
    parts = [
        _projected(
            jax.random.fold_in(key, zlib.crc32(name.encode())),
            term,
            target.params[name].shape,
            dimensions,
        )
        for name, term in terms.items()
    ]
    return sum(parts, jnp.zeros(dimensions)) / math.sqrt(dimensions)


def _projected(key: Array, term: Term, shape: tuple[int, ...], dimensions: int) -> Array:
    """One record's gradient of one variable times random signs, in blocks of its rows.

    The signs depend on the shape only and not on the form the gradient happens to have.
    """
    columns = shape[-1] if shape else 1
    count = math.prod(shape[:-1])
    rows = min(max(1, _BLOCK // max(1, columns * dimensions)), max(1, count))
    blocks = -(-count // rows)
    if not blocks * columns:
        return jnp.zeros(dimensions)
    factors = matrix_factors(term)
    if factors is None:
        flat = materialised(term).reshape(count, columns)
        left = jnp.zeros(0)
    else:
        left, flat = factors
        left = left.T  # [rows of the variable, T]
    cut = flat if factors is None else left
    cut = jnp.pad(cut, [(0, blocks * rows - count), (0, 0)]).reshape(blocks, rows, cut.shape[1])

    def step(found: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        i, part = block
        gradient = part if factors is None else jnp.matmul(part, flat)
        signs = _signs(jax.random.fold_in(key, i), rows * columns, dimensions, found.dtype)
        return found + jnp.matmul(gradient.reshape(-1).astype(found.dtype), signs), None

    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    found, _ = lax.scan(step, jnp.zeros(dimensions, dtype), (jnp.arange(blocks), cut))
    return found


def _signs(key: Array, rows: int, columns: int, dtype: jnp.dtype) -> Array:
    """Independent signs `[rows, columns]`, 32 of each random word."""
    words = jax.random.bits(key, (rows, -(-columns // 32)), "uint32")
    bits = (words[..., None] >> jnp.arange(32, dtype="uint32")[None, None]) & 1
    return 1 - 2 * bits.reshape(rows, -1)[:, :columns].astype(dtype)
