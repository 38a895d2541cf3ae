"""What an equation in which variables meet other values adds to their gradients."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxmeter.gradients.factors import (
    Outer,
    Products,
    Rows,
    Term,
    TransposedOuter,
    as_it_is,
    ghost_is_cheaper,
    swapped,
)
from jaxmeter.jaxpr.convolutions import patches_of
from jaxmeter.jaxpr.equations import (
    bind,
    convolution_of,
    lookup_of,
    permutation_of,
    product_of,
    wrapped_of,
)

# Of one operand, these only put its entries in another order, shape or type.
_PERMUTING = {"convert_element_type", "copy", "reshape", "squeeze", "transpose", "rev"}


class Derived(NamedTuple):
    """A value computed from chosen variables alone (cast, reshape, concatenation, ...).

    Attributes:
      names: the variables.
      fun: makes it from `{name: variable}`.
      value: itself; only its shape and dtype in a `Use`.
      permuted: its entries are those of one variable, each once.
      axes: for each of its axes the variable's axis it is, or None for an axis of length 1; None
        where axes were joined or split.
    """

    names: tuple[str, ...]
    fun: Callable[[dict[str, Array]], Any]
    value: Any
    permuted: bool
    axes: tuple[int | None, ...] | None

    @classmethod
    def of(cls, name: str, variable: Array) -> Self:
        """A variable itself."""
        axes = tuple(range(jnp.ndim(variable)))
        return cls((name,), lambda variables: variables[name], variable, True, axes)

    @classmethod
    def by(cls, eqn: Any, values: list[Any]) -> Self:
        """The result of an equation whose arguments are such values or literals."""
        parts = [v.described() if isinstance(v, Derived) else v for v in values]

        def fun(variables: dict[str, Array]) -> Any:
            args = [v.fun(variables) if isinstance(v, Derived) else v for v in parts]
            return bind(eqn, args)[0]

        derived = [v for v in parts if isinstance(v, Derived)]
        names = tuple(dict.fromkeys(name for v in derived for name in v.names))
        (value,) = bind(eqn, [v.value if isinstance(v, Derived) else v for v in values])
        same = len(values) == 1 and value.size == derived[0].value.size
        permuted = same and derived[0].permuted and _permutes(eqn)
        axes = _axes(eqn, derived[0], value) if permuted else None
        return cls(names, fun, value, permuted, axes)

    def described(self) -> Self:
        """Itself without the value, which may belong to a loop's body."""
        return self._replace(value=jax.ShapeDtypeStruct(self.value.shape, self.value.dtype))


def _permutes(eqn: Any) -> bool:
    if eqn.primitive.name == "broadcast_in_dim":
        return True  # of the same size, as was seen
    floating = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
    return eqn.primitive.name in _PERMUTING and bool(floating)


def _axes(eqn: Any, derived: Derived, value: Any) -> tuple[int | None, ...] | None:
    name, old, shape = eqn.primitive.name, derived.value.shape, value.shape
    if derived.axes is None or name == "rev":
        return None
    if name == "transpose":
        return tuple(derived.axes[d] for d in permutation_of(eqn))
    if shape == old:
        return derived.axes
    if [d for d in shape if d != 1] != [d for d in old if d != 1]:
        return None
    kept = iter([axis for axis, d in zip(derived.axes, old, strict=True) if d != 1])
    return tuple(None if d == 1 else next(kept) for d in shape)


class Use(NamedTuple):
    """An equation in which chosen variables meet other values.

    Attributes:
      eqn: the equation.
      derived: operand position -> how it comes from variables.
      operands: the other operands' values, in order; none of a sum.
      taps: indices into the list of taps, one an output that is not an integer.
      stacks: leading axes of operands and errors, one a loop around the equation.
    """

    eqn: Any
    derived: dict[int, Derived]
    operands: list[Any]
    taps: list[int]
    stacks: int

    def gradients(
        self, operands: list[Any], deltas: list[Array], chosen: dict[str, Array]
    ) -> dict[str, Term]:
        """What this use adds to the gradient of each variable in it."""
        if adds(self.eqn):
            return dict(self._added(deltas[0], chosen))
        if len(self.derived) == 1:
            ((position, derived),) = self.derived.items()
            form = _FORMS.get(self.eqn.primitive.name)
            if derived.permuted and form is not None:
                (name,) = derived.names
                found = form(self, position, derived, operands, deltas[0], chosen[name])
                if found is not None:
                    return {name: found}
        return dict(self._transposed(operands, deltas, chosen))

    def _added(self, delta: Array, chosen: dict[str, Array]) -> dict[str, Array]:
        """The error itself, as it reaches the variables."""
        (derived,) = self.derived.values()
        met = delta.sum(axis=tuple(range(self.stacks)))
        variables = {name: chosen[name] for name in derived.names}
        return jax.vjp(derived.fun, variables)[1](met)[0]

    def _transposed(
        self, operands: list[Any], deltas: list[Array], chosen: dict[str, Array]
    ) -> dict[str, Array]:
        """By JAX's own transpose. A loop's steps are mapped over: their sum is its transpose."""
        names = dict.fromkeys(name for d in self.derived.values() for name in d.names)

        def forward(variables: dict[str, Array]) -> list[Array]:
            def once(operands: list[Any], _: Any) -> list[Array]:
                rest = iter(operands)
                count = range(len(self.eqn.invars))
                args = [
                    d.fun(variables) if (d := self.derived.get(i)) else next(rest) for i in count
                ]
                return [out for out in bind(self.eqn, args) if is_inexact(out)]

            fun: Callable[..., list[Array]] = once
            for _ in range(self.stacks):
                fun = jax.vmap(fun)
            return fun(operands, jnp.zeros(deltas[0].shape[: self.stacks]))

        (found,) = jax.vjp(forward, {name: chosen[name] for name in names})[1](deltas)
        return found


def adds(eqn: Any) -> bool:
    """Whether the error at each operand is that at the result, a sum."""
    alike = all(v.aval.shape == eqn.outvars[0].aval.shape for v in eqn.invars)
    return eqn.primitive.name in {"add", "add_any"} and alike


def is_inexact(value: Any) -> bool:
    """Whether a value has a gradient."""
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))


def _back(derived: Derived, variable: Array) -> Callable[[Array], Array]:
    """Puts a gradient of a permuted value in the variable's own order and type."""
    (name,) = derived.names
    like = jax.ShapeDtypeStruct(variable.shape, variable.dtype)
    shape, dtype = derived.value.shape, derived.value.dtype

    def back(gradient: Array) -> Array:
        if derived.axes == tuple(range(len(like.shape))):
            return gradient.reshape(shape).astype(like.dtype)
        transpose = jax.linear_transpose(lambda v: derived.fun({name: v}), like)
        (found,) = transpose(gradient.reshape(shape).astype(dtype))
        return found

    return back


# --- matrix products ----------------------------------------------------------------------------


def _product(
    use: Use, position: int, derived: Derived, operands: list[Any], delta: Array, variable: Array
) -> Term | None:
    (operand,) = operands
    contracting, batch, precision = product_of(use.eqn)
    kernel, k_in, k_batch = derived.value, contracting[position], batch[position]
    o_in, o_batch = contracting[1 - position], batch[1 - position]
    k_out = [d for d in range(kernel.ndim) if d not in {*k_in, *k_batch}]
    stacks = use.stacks
    o_ndim = operand.ndim - stacks
    o_free = [d for d in range(o_ndim) if d not in {*o_in, *o_batch}]
    n_batch = len(k_batch)
    sizes = [math.prod(kernel.shape[d] for d in dims) for dims in (k_batch, k_in, k_out)]
    # The result's axes: batch, then those of the left operand, then those of the right.
    free = list(range(n_batch, n_batch + len(o_free) + len(k_out)))
    if position == 1:
        d_free, d_out = free[: len(o_free)], free[len(o_free) :]
    else:
        d_out, d_free = free[: len(k_out)], free[len(k_out) :]
    looped = list(range(stacks))

    def rows(value: Array) -> Array:
        order = [*(stacks + d for d in o_batch), *looped, *(stacks + d for d in (*o_free, *o_in))]
        return value.transpose(order).reshape(sizes[0], -1, sizes[1])

    def errors(value: Array) -> Array:
        order = [
            *range(stacks, stacks + n_batch),
            *looped,
            *(stacks + d for d in (*d_free, *d_out)),
        ]
        return value.transpose(order).reshape(sizes[0], -1, sizes[2])

    direct = _orientation(derived, variable, k_in, k_out) if sizes[0] == 1 else None
    a, error = jax.eval_shape(rows, operand), jax.eval_shape(errors, delta)
    if direct is not None and a.shape[1] == 1:
        kind = Outer if direct else TransposedOuter
        return kind(*(v[0, 0].astype(variable.dtype) for v in (rows(operand), errors(delta))))
    if 0 in (*a.shape, *error.shape):
        return None
    if direct is not None:
        restore = as_it_is if direct else swapped
    else:
        order = [*k_batch, *k_in, *k_out]
        split = tuple(kernel.shape[d] for d in order)
        inverse = tuple(order.index(d) for d in range(kernel.ndim))
        back = _back(derived, variable)

        def restore(gradient: Array) -> Array:
            return back(gradient.reshape(split).transpose(inverse))

    return Products(operand, delta, rows, errors, restore, variable.dtype, precision)


def _orientation(derived: Derived, variable: Array, k_in: Any, k_out: Any) -> bool | None:
    """Whether a matrix is stored `[d_in, d_out]` (not `[d_out, d_in]`); None if it is no matrix."""
    axes = derived.axes
    if axes is None or variable.ndim != 2:
        return None
    inward, outward = ({axes[d] for d in dims} - {None} for dims in (k_in, k_out))
    if len(inward) > 1 or len(outward) > 1 or not inward | outward:
        return None
    return inward == {0} if inward else outward == {1}


# --- convolutions -------------------------------------------------------------------------------


def _convolution(
    use: Use, position: int, derived: Derived, operands: list[Any], delta: Array, variable: Array
) -> Term | None:
    """Where the norm is cheaper from patches; the gradient goes by the program's own way."""
    eqn = wrapped_of(use.eqn) or use.eqn
    if eqn.primitive.name != "conv_general_dilated" or position != 1 or use.stacks:
        return None
    made = patches_of(eqn)
    if made is None:
        return None
    rows, errors, kernel_of = made
    (operand,) = operands
    a, error = jax.eval_shape(rows, operand), jax.eval_shape(errors, delta)
    if not ghost_is_cheaper(a.shape[1], a.shape[2], error.shape[2]):
        return None
    back = _back(derived, variable)
    (name,) = derived.names

    def whole(operand: Array, delta: Array) -> Array:
        def forward(kernel: Array) -> Array:
            (out,) = bind(use.eqn, [operand, kernel])
            return out

        kernel = jnp.zeros(derived.value.shape, derived.value.dtype)  # it is linear
        return back(jax.vjp(forward, kernel)[1](delta)[0])

    restore = lambda gradient: back(kernel_of(gradient))  # noqa: E731
    precision = convolution_of(eqn).precision
    return Products(operand, delta, rows, errors, restore, variable.dtype, precision, whole)


# --- tables -------------------------------------------------------------------------------------


def _lookup(
    use: Use, position: int, derived: Derived, operands: list[Any], delta: Array, variable: Array
) -> Term | None:
    """`table[index]`, as gather says it."""
    (numbers, slice_sizes, mode), table = lookup_of(use.eqn), derived.value
    size = table.shape[0] if table.ndim else 0
    by_rows = (
        position == 0
        and tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (0,)
        and not numbers.operand_batching_dims
        and slice_sizes == (1, *table.shape[1:])
    )
    if not by_rows or size == 0:
        return None
    (index,) = operands
    index = jnp.asarray(index).reshape(-1)
    if mode == lax.GatherScatterMode.CLIP:
        index = jnp.clip(index, 0, size - 1)
    else:
        index = jnp.where((index >= 0) & (index < size), index, size)
    offset = [use.stacks + d for d in numbers.offset_dims]
    order = [*(d for d in range(delta.ndim) if d not in offset), *offset]
    delta = delta.transpose(order).reshape(-1, *table.shape[1:])
    return Rows(index, delta, size, _back(derived, variable)) if len(index) else None


_FORMS: dict[str, Callable[..., Term | None]] = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "custom_jvp_call": _convolution,
    "gather": _lookup,
}
