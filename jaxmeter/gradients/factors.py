"""Gradients in the factored forms that layers give them, and their norms without forming them.

A kernel that meets T rows of input has the gradient `A^T D`, the sum of T outer products of its
inputs `A` `[T, d_in]` and the errors `D` `[T, d_out]`; a table of which T rows are looked up has
the T errors in those rows. Both are smaller than the variable's shape while T is small.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax import Array, lax

# What moving one number of an array costs beside a multiplication and addition in a product.
# Measured on two CPU cores; it decides only where both ways take about as long.
_MOVE = 16
_FEW_LOOKUPS = 256  # up to here rows of a table are compared pairwise, above they are sorted


class Outer(NamedTuple):
    """The gradient of a Dense kernel, factored: `gradient[i, j] = a[i] * delta[j]`.

    Attributes:
      a: the layer's input, `[..., d_in]`.
      delta: the error at its pre-activation, `[..., d_out]`; also the gradient of its bias.

    >>> grad = Outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    >>> grad.materialise().tolist(), round(float(grad.norm()), 2)
    ([[3.0, 4.0], [6.0, 8.0]], 11.18)
    """

    a: Array
    delta: Array

    def materialise(self) -> Array:
        """The gradient itself, `[..., d_in, d_out]`."""
        return self.a[..., :, None] * self.delta[..., None, :]

    def norm(self) -> Array:
        """Its Frobenius norm, `[...]`, as `|a| |delta|` (Goodfellow 2015, arXiv:1510.01799)."""
        return _norm(self.a, axis=-1) * _norm(self.delta, axis=-1)


class TransposedOuter(Outer):
    """An `Outer` of a kernel that is stored `[d_out, d_in]`, as in PyTorch.

    `a` is the layer's input and `delta` the error all the same; only the gradient itself has the
    kernel's own shape.

    >>> TransposedOuter(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])).materialise().tolist()
    [[3.0, 6.0], [4.0, 8.0]]
    """

    __slots__ = ()

    def materialise(self) -> Array:
        """The gradient itself, `[..., d_out, d_in]`."""
        return self.delta[..., :, None] * self.a[..., None, :]


@flax.struct.dataclass
class Products:
    """One record's gradient of a kernel that meets several rows: `A[b]^T D[b]` for each kernel b.

    Arrays are kept as the program has them. `rows(operand)` is `A` `[B, T, d_in]` and
    `errors(delta)` is `D` `[B, T, d_out]`; `restore` puts `[B, d_in, d_out]` in the variable's
    order, of which it is a permutation. `whole(operand, delta)` is the gradient where there is a
    faster way to it than those, as for convolutions whose patches are large.
    """

    operand: Any
    delta: Any
    rows: Callable[[Any], Array] = flax.struct.field(pytree_node=False)
    errors: Callable[[Any], Array] = flax.struct.field(pytree_node=False)
    restore: Callable[[Array], Array] = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False)  # the variable's
    precision: Any = flax.struct.field(pytree_node=False, default=None)
    whole: Callable[[Any, Any], Array] | None = flax.struct.field(pytree_node=False, default=None)

    def factors(self) -> tuple[Array, Array]:
        """`A` and `D`, of one type."""
        a, delta = self.rows(self.operand), self.errors(self.delta)
        dtype = jnp.promote_types(a.dtype, delta.dtype)
        return a.astype(dtype), delta.astype(dtype)

    def materialise(self) -> Array:
        """The gradient in the variable's shape."""
        if self.whole is not None:
            return self.whole(self.operand, self.delta)
        a, delta = self.factors()
        numbers = (((1,), (1,)), ((0,), (0,)))
        wide = jnp.promote_types(a.dtype, jnp.float32)
        made = lax.dot_general(a, delta, numbers, self.precision, preferred_element_type=wide)
        return self.restore(made).astype(self.dtype)

    def norm(self) -> Array:
        """Its Frobenius norm, a scalar; by `ghost_norm` where that is cheaper."""
        a, delta = jax.eval_shape(self.factors)
        (_, t, d_in), d_out = a.shape, delta.shape[-1]
        if not ghost_is_cheaper(t, d_in, d_out):
            return _norm(self.materialise().ravel(), axis=-1)
        return ghost_norm(*self.factors())


def ghost_is_cheaper(t: int, d_in: int, d_out: int) -> bool:
    """Whether the norm of `A^T D` costs less by its rows' products with each other.

    Both ways count multiplications and the numbers that are written and read again: `2 T^2` of
    products, or the `d_in d_out` of the gradient (Li et al. 2022, arXiv:2110.05679, compare only
    the latter).
    """
    ghost = t * t * (d_in + d_out) + _MOVE * 2 * t * t
    return t == 1 or ghost <= (t + _MOVE) * d_in * d_out


def ghost_norm(a: Array, delta: Array) -> Array:
    """`sqrt(sum_b |A[b]^T D[b]|^2)` of `[B, T, d_in]` and `[B, T, d_out]`, never forming `A^T D`.

    `|A^T D|^2 = sum((A A^T) * (D D^T))` (Goodfellow 2015, arXiv:1510.01799, for sequences). Its
    terms cancel where the outer products do. If `r` is `|A| |D| / |A^T D|`, the sum's rounding
    error relative to it is `r^2` times the type's, where that of `A^T D` is `r` times; so products
    are taken in full precision, and what rounds below zero is zero.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    if a.shape[1] == 1:
        squares = [jnp.sum(jnp.square(v.astype(wide)), axis=(1, 2)) for v in (a, delta)]
        return jnp.sqrt(jnp.sum(squares[0] * squares[1]))
    numbers = (((2,), (2,)), ((0,), (0,)))
    grams = [
        lax.dot_general(v, v, numbers, lax.Precision.HIGHEST, preferred_element_type=wide)
        for v in (a, delta)
    ]
    return jnp.sqrt(jnp.maximum(jnp.sum(grams[0] * grams[1]), 0))


@flax.struct.dataclass
class Rows:
    """One record's gradient of a table: `delta` `[T, ...]` added to its rows `index` `[T]`.

    Rows whose index is `size` are dropped: what was looked up there was no part of the table.
    """

    index: Array
    delta: Array
    size: int = flax.struct.field(pytree_node=False)
    restore: Callable[[Array], Array] = flax.struct.field(pytree_node=False)

    def materialise(self) -> Array:
        """The gradient in the variable's shape."""
        table = jnp.zeros((self.size, *self.delta.shape[1:]), self.delta.dtype)
        return self.restore(table.at[self.index].add(self.delta, mode="drop"))

    def norm(self) -> Array:
        """Its norm, a scalar: errors of equal rows are added, and no table is made."""
        t, flat = len(self.index), self.delta.reshape(len(self.index), -1)
        flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
        if self.size <= t:
            return _norm(self.materialise().ravel(), axis=-1)
        inside = self.index < self.size
        if t <= _FEW_LOOKUPS:
            same = self.index[:, None] == self.index[None, :]
            first = jnp.argmax(same, axis=1) == jnp.arange(t)  # of those that are equal
            sums = jnp.matmul(same.astype(flat.dtype), flat, precision=lax.Precision.HIGHEST)
            kept = first & inside
        else:
            order = jnp.argsort(self.index)
            index, flat = self.index[order], flat[order]
            starts = jnp.concatenate([jnp.ones(1, bool), index[1:] != index[:-1]])
            segment = jnp.cumsum(starts) - 1
            sums = jax.ops.segment_sum(flat, segment, t, indices_are_sorted=True)
            index = jax.ops.segment_max(index, segment, t, indices_are_sorted=True)
            kept = (index >= 0) & (index < self.size)  # segments of nothing have a least index
        return jnp.sqrt(jnp.sum(jnp.where(kept[:, None], jnp.square(sums), 0)))


Gradient = Array | Outer
Term = Array | Outer | Products | Rows


def materialised(gradient: Term) -> Array:
    """A gradient as one array."""
    return gradient.materialise() if isinstance(gradient, Outer | Products | Rows) else gradient


def settled(gradient: Term) -> Gradient:
    """A gradient as an `Outer` or one array, which may leave the program that makes it."""
    return gradient if isinstance(gradient, Outer) else materialised(gradient)


def gradient_norm(gradient: Term) -> Array:
    """Norm of one record's gradient of one variable, a scalar."""
    if isinstance(gradient, Outer | Products | Rows):
        return gradient.norm()
    return _norm(gradient.ravel(), axis=-1)


def total(terms: list[Term]) -> Term:
    """The sum over a variable's uses, which stays factored where every term is a matrix's."""
    if len(terms) == 1:
        return terms[0]
    pairs = [matrix_factors(term) for term in terms]
    if all(pair is not None for pair in pairs):
        lefts, rights = zip(*(pair for pair in pairs if pair is not None), strict=True)
        (dtype,) = {term.dtype for term in terms if isinstance(term, Products)} or {lefts[0].dtype}
        return Products(tuple(lefts), tuple(rights), _stacked, _stacked, as_it_is, dtype)
    return sum((materialised(term) for term in terms[1:]), materialised(terms[0]))


def matrix_factors(term: Term) -> tuple[Array, Array] | None:
    """`A` and `D` with `A^T D` the gradient in the variable's own order, if it has such."""
    if isinstance(term, TransposedOuter):
        return term.delta[None], term.a[None]
    if isinstance(term, Outer):
        return term.a[None], term.delta[None]
    if not isinstance(term, Products) or term.restore not in (as_it_is, swapped):
        return None
    a, delta = (v[0] for v in term.factors())
    return (a, delta) if term.restore is as_it_is else (delta, a)


def row_factors(term: Term) -> tuple[Array, Array] | None:
    """`A` `[B, T, d_in]`, `D` `[B, T, d_out]` with `A[b]^T D[b]` the gradient, if it has such."""
    if isinstance(term, Outer):
        return term.a[None, None], term.delta[None, None]
    return term.factors() if isinstance(term, Products) else None


def as_matrices(term: Term, value: Array) -> Array:
    """A value of the variable's shape as `[B, d_in, d_out]`, in the order of `row_factors`."""
    if isinstance(term, Outer):
        return (value.T if isinstance(term, TransposedOuter) else value)[None]
    assert isinstance(term, Products), "others have no rows"
    a, delta = jax.eval_shape(term.factors)
    shape = jax.ShapeDtypeStruct((a.shape[0], a.shape[2], delta.shape[2]), value.dtype)
    (matrices,) = jax.linear_transpose(term.restore, shape)(value)
    return matrices


def as_it_is(gradient: Array) -> Array:
    """`[1, d_in, d_out]` to `[d_in, d_out]`."""
    return gradient[0]


def swapped(gradient: Array) -> Array:
    """`[1, d_in, d_out]` to `[d_out, d_in]`."""
    return gradient[0].T


def _stacked(parts: tuple[Array, ...]) -> Array:
    return jnp.concatenate(parts, axis=0)[None]


def _norm(values: Array, axis: int) -> Array:
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return jnp.sqrt(jnp.sum(jnp.square(values), axis=axis))
