"""The forms that a convolution can take, equal to it, and the rule that says which is fastest.

The rule looks at shapes only and holds for XLA on CPU. `benchmarks/lowering.py` measures what its
constants rest on.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxmeter.jaxpr.equations import Convolution, bind, convolution_of

# Measured on two CPU cores with jax 0.10.2 by benchmarks/lowering.py.
_FEW_ROWS = 32  # kernels with no more rows (offsets x channels) than this: XLA packs them slowly
_FEW_OFFSETS = 32  # up to here each offset is sliced on its own, above axis by axis
_MANY_SLICES = 128  # programs with more slices than this compile too slowly
_SMALL = 2**18  # numbers of patches a record, up to which they stay in the cache


class Case(NamedTuple):
    """The facts about a convolution that decide its form."""

    records: int
    size: tuple[int, ...]  # spatial, before padding
    positions: tuple[int, ...]  # spatial, of the result
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    lhs_dilation: tuple[int, ...]
    channels: int
    features: int
    groups: int


def form_of(case: Case, looped: bool) -> str:
    """Which form is fastest on CPU.

    One of "native", "canonical", "mixed", "patches", "products" or "scattered".

    - XLA gives a convolution to Eigen's threads unless the image is smaller than the kernel; then
      it, or its transpose, runs a naive loop, up to 150 times slower.
    - Pointwise kernels are matrix products, and kernels of few rows (a first layer's) are packed
      slowly: patches are 2 to 8 times faster.
    - Weight gradients of grouped convolutions are 10 to 700 times slower in XLA, and of depthwise
      ones all else too.
    - Transposed convolutions multiply the zeros between the pixels.
    - Otherwise Eigen wins by a factor of 1 to 4, because it packs patches in cache. But in loops it
      takes convolutions in one layout only ("canonical"), and others run a naive loop. And under
      `vmap` a weight gradient becomes a convolution with a group for each record, and a batched
      matrix product is faster. `vmap` itself is not seen here; one record is its sign.
    """
    offsets = math.prod(case.kernel)
    if 0 in (case.records, case.channels, case.features, *case.size, *case.positions, offsets):
        return "native"
    if sum(case.kernel) > _MANY_SLICES:
        return "native"
    if case.groups == case.channels > 1 and offsets <= _MANY_SLICES:
        return "products"
    if any(d > 1 for d in case.lhs_dilation):
        spread = case.groups == 1 and set(case.strides) == {1} and offsets <= _MANY_SLICES
        return "scattered" if spread else "patches"
    gapped = [(p - 1) * s + 1 for p, s in zip(case.positions, case.strides, strict=True)]
    naive = any(min(n, m) < k for n, m, k in zip(case.size, gapped, case.kernel, strict=True))
    if naive or looped and case.groups > 1:
        return "patches"
    if case.groups > 1:
        return "mixed"
    if offsets == 1 or offsets * case.channels <= _FEW_ROWS:
        return "patches"
    return "canonical" if looped or case.records == 1 else "native"


class _Geometry(NamedTuple):
    """A convolution's parameters, in the layout `[n, *spatial, c]`, `[*kernel, c / groups, o]`."""

    case: Case
    padding: tuple[tuple[int, int], ...]
    rhs_dilation: tuple[int, ...]
    precision: Any
    preferred: Any
    dtype: Any

    @classmethod
    def of(cls, conv: Convolution, case: Case, dtype: Any) -> Self:
        precision, preferred = conv.precision, conv.preferred_element_type
        return cls(case, conv.padding, conv.rhs_dilation, precision, preferred, dtype)

    @property
    def accumulator(self) -> Any:
        return jnp.promote_types(self.preferred or self.dtype, jnp.float32)


def _case(eqn: Any) -> Case | None:
    """An equation's case, if it is one that has other forms."""
    (lhs, rhs), out = (v.aval for v in eqn.invars), eqn.outvars[0].aval
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in (lhs, rhs)):
        return None
    conv = convolution_of(eqn)
    if not conv.is_plain:
        return None
    lhs_spec, rhs_spec, out_spec = conv[:3]
    return Case(
        records=lhs.shape[lhs_spec[0]],
        size=tuple(lhs.shape[d] for d in lhs_spec[2:]),
        positions=tuple(out.shape[d] for d in out_spec[2:]),
        kernel=tuple(rhs.shape[d] for d in rhs_spec[2:]),
        strides=conv.window_strides,
        lhs_dilation=conv.lhs_dilation,
        channels=lhs.shape[lhs_spec[1]],
        features=rhs.shape[rhs_spec[0]],
        groups=conv.groups,
    )


def chosen_form(eqn: Any, looped: bool) -> str:
    """The form of an equation; "native" for one that has no other."""
    case = _case(eqn)
    return "native" if case is None else form_of(case, looped)


def convolution(eqn: Any, looped: bool) -> Callable[[Array, Array], Array]:
    """A function of both operands that is equal to the equation."""

    def native(lhs: Array, rhs: Array) -> Array:
        (out,) = bind(eqn, [lhs, rhs])
        return out

    case, form = _case(eqn), chosen_form(eqn, looped)
    if case is None or form == "native":
        return native
    conv, out = convolution_of(eqn), eqn.outvars[0].aval
    lhs_spec, rhs_spec, out_spec = conv[:3]
    geometry = _Geometry.of(conv, case, out.dtype)

    def by(compute: Callable[[_Geometry, Array, Array], Array]) -> Callable[[Array, Array], Array]:
        def run(lhs: Array, rhs: Array) -> Array:
            lhs = lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
            rhs = lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
            made = compute(geometry, lhs, rhs).astype(out.dtype)
            back = (out_spec[0], *out_spec[2:], out_spec[1])
            return lax.transpose(made, tuple(back.index(d) for d in range(made.ndim)))

        return run

    if form == "products":
        return _with_rules(by(_products), by(_products))
    if form == "canonical":
        return _in_canonical_layout(geometry, conv)
    if form == "mixed":
        tall = math.prod(case.positions) >= case.features
        few = case.groups == 1 and math.prod(case.kernel) <= _FEW_OFFSETS
        # Patches would be larger than the gradient; one product an offset never holds them.
        return _with_rules(native, by(_shifts if tall and few else _patches))
    return by(_scattered if form == "scattered" else _patches)


def patches_of(
    eqn: Any,
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], Callable[[Array], Array]] | None:
    """An ungrouped convolution as a product `A K` with patches: `(rows, errors, kernel)`.

    `rows(lhs)` is `A` `[1, n * positions, offsets * c]`, `errors(out)` the result's layout as
    `[1, n * positions, features]`, and `kernel` brings `[1, offsets * c, features]` to the second
    operand's layout. None for a convolution that has no such form.
    """
    case = _case(eqn)
    if case is None or case.groups != 1 or sum(case.kernel) > _MANY_SLICES:
        return None
    if 0 in (case.records, case.channels, case.features, *case.positions, *case.kernel):
        return None
    conv = convolution_of(eqn)
    lhs_spec, rhs_spec, out_spec = conv[:3]
    geometry = _Geometry.of(conv, case, eqn.outvars[0].aval.dtype)

    def rows(lhs: Array) -> Array:
        found = _rows(geometry, lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])))
        return found.reshape(1, -1, found.shape[-1])

    def errors(made: Array) -> Array:
        made = lax.transpose(made, (out_spec[0], *out_spec[2:], out_spec[1]))
        return made.reshape(1, -1, case.features)

    def kernel(flat: Array) -> Array:
        w = flat.reshape(*case.kernel, case.channels, case.features)
        order = (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
        return lax.transpose(w, tuple(order.index(d) for d in range(w.ndim)))

    return rows, errors, kernel


def _with_rules(
    whole: Callable[[Array, Array], Array],
    for_weight: Callable[[Array, Array], Array],
    for_input: Callable[[Array, Array], Array] | None = None,
) -> Callable[[Array, Array], Array]:
    """`whole`, but differentiated in its operands by functions that are equal to it.

    Also makes it one equation, so that gradients see a kernel meet an activation once. This is no
    `custom_vjp`: the rule is made of functions that JAX differentiates further, in any mode.
    """

    @jax.custom_jvp
    def function(lhs: Array, rhs: Array) -> Array:
        return whole(lhs, rhs)

    @partial(function.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (lhs, rhs), (lhs_dot, rhs_dot) = primals, tangents
        out = function(lhs, rhs)
        terms = []
        if not isinstance(lhs_dot, SymbolicZero):
            terms.append((for_input or function)(lhs_dot, rhs))
        if not isinstance(rhs_dot, SymbolicZero):
            terms.append(for_weight(lhs, rhs_dot))
        return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)

    return function


def _in_canonical_layout(g: _Geometry, conv: Convolution) -> Callable[[Array, Array], Array]:
    """The convolution with every layout, its gradients' too, the one that XLA is fast in."""
    lhs_spec, rhs_spec, out_spec = conv[:3]
    last = len(g.case.kernel) + 1
    channels_last = (0, last, *range(1, last))

    def convolution(x: Array, w: Array, turned: bool) -> Array:
        kernel = (last, last - 1) if not turned else (last - 1, last)
        return lax.conv_general_dilated(
            x,
            w,
            g.case.strides,
            g.padding,
            rhs_dilation=g.rhs_dilation,
            dimension_numbers=lax.ConvDimensionNumbers(
                channels_last, (*kernel, *range(last - 1)), channels_last
            ),
            precision=g.precision,
            preferred_element_type=g.preferred,
        )

    def for_input(x: Array, w: Array) -> Array:
        return convolution(x, jnp.swapaxes(w, -1, -2), turned=True)

    small = math.prod(g.case.positions) * math.prod(g.case.kernel) * g.case.channels < _SMALL
    few = math.prod(g.case.kernel) <= _FEW_OFFSETS
    for_weight = _patches if small or not few else _shifts
    compute = _with_rules(
        partial(convolution, turned=False),
        lambda x, w: for_weight(g, x, w).astype(g.dtype),
        for_input,
    )

    def run(lhs: Array, rhs: Array) -> Array:
        lhs = lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
        rhs = lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
        back = (out_spec[0], *out_spec[2:], out_spec[1])
        return lax.transpose(compute(lhs, rhs), tuple(back.index(d) for d in range(lhs.ndim)))

    return run


def _padded(g: _Geometry, x: Array) -> Array:
    between = [d - 1 for d in g.case.lhs_dilation]
    spatial = [(*pad, gap) for pad, gap in zip(g.padding, between, strict=True)]
    if not any(any(config) for config in spatial):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def _slices(g: _Geometry, x: Array, axis: int) -> list[Array]:
    """For each offset of the kernel along one spatial axis, what it meets, by position."""
    count, stride = g.case.positions[axis], g.case.strides[axis]
    starts = [k * g.rhs_dilation[axis] for k in range(g.case.kernel[axis])]
    stops = [start + (count - 1) * stride + 1 for start in starts]
    return [
        lax.slice_in_dim(x, start, stop, stride, axis + 1)
        for start, stop in zip(starts, stops, strict=True)
    ]


def _offsets(g: _Geometry, x: Array) -> list[Array]:
    """For each offset of the kernel, in row-major order, what it meets: `[n, *positions, c]`."""
    found = [_padded(g, x)]
    for axis in range(len(g.case.kernel)):
        found = [piece for x in found for piece in _slices(g, x, axis)]
    return found


def _rows(g: _Geometry, x: Array) -> Array:
    """Patches `[n, *positions, offsets * c]`."""
    if math.prod(g.case.kernel) <= _FEW_OFFSETS and g.case.channels > 4:
        return jnp.concatenate(_offsets(g, x), axis=-1)
    x = _padded(g, x)
    for axis in reversed(range(len(g.case.kernel))):  # few slices, and long runs of few channels
        x = jnp.concatenate(_slices(g, x, axis), axis=-1)
    return x


def _patches(g: _Geometry, x: Array, w: Array) -> Array:
    """One matrix product of patches and kernel, or one a group."""
    dot = partial(lax.dot_general, precision=g.precision, preferred_element_type=g.preferred)
    rows, groups, last = _rows(g, x), g.case.groups, x.ndim - 1
    if groups == 1:
        return dot(rows, w.reshape(-1, g.case.features), (((last,), (0,)), ((), ())))
    inner = g.case.channels // groups
    rows = rows.reshape(*rows.shape[:-1], -1, groups, inner)
    w = w.reshape(-1, inner, groups, g.case.features // groups)
    made = dot(rows, w, (((last, last + 2), (0, 1)), ((last + 1,), (2,))))
    return jnp.moveaxis(made, 0, -2).reshape(*rows.shape[:last], g.case.features)


def _shifts(g: _Geometry, x: Array, w: Array) -> Array:
    """A sum of matrix products, one an offset."""
    count = math.prod(g.case.kernel)
    # `split` and not indexing: its transpose concatenates, that of indexing pads and adds.
    kernels = lax.split(w.reshape(-1, g.case.features), [g.case.channels] * count, axis=0)
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    made = [
        lax.dot_general(piece, kernel, numbers, g.precision, preferred_element_type=g.accumulator)
        for piece, kernel in zip(_offsets(g, x), kernels, strict=True)
    ]
    return sum(made[1:], made[0])


def _products(g: _Geometry, x: Array, w: Array) -> Array:
    """A depthwise convolution: a sum of elementwise products, one an offset."""
    x, w = x.astype(g.accumulator), w.astype(g.accumulator)
    each = g.case.features // g.case.channels
    kernels = lax.split(
        w.reshape(-1, g.case.channels, each), [1] * math.prod(g.case.kernel), axis=0
    )
    leading = (1,) * (x.ndim - 1)
    made = [
        piece[..., None] * kernel.reshape(*leading, g.case.channels, each)
        if each > 1
        else piece * kernel.reshape(*leading, g.case.channels)
        for piece, kernel in zip(_offsets(g, x), kernels, strict=True)
    ]
    total = sum(made[1:], made[0])
    return total.reshape(*total.shape[: x.ndim - 1], g.case.features)


def _scattered(g: _Geometry, x: Array, w: Array) -> Array:
    """A transposed convolution: each pixel times the whole kernel, added where it belongs."""
    offsets, features = math.prod(g.case.kernel), g.case.features
    w = w.reshape(offsets, g.case.channels, features).swapaxes(0, 1)
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    every = lax.dot_general(
        x,
        w.reshape(g.case.channels, -1),
        numbers,
        g.precision,
        preferred_element_type=g.accumulator,
    )
    zero = jnp.zeros((), every.dtype)
    made = []
    for i, at in enumerate(itertools.product(*map(range, g.case.kernel))):
        config = []
        for axis, k in enumerate(at):
            gap = g.case.lhs_dilation[axis]
            low = g.padding[axis][0] - k * g.rhs_dilation[axis]
            high = g.case.positions[axis] - low - ((g.case.size[axis] - 1) * gap + 1)
            config.append((low, high, gap - 1))
        piece = lax.slice_in_dim(every, i * features, (i + 1) * features, axis=x.ndim - 1)
        made.append(lax.pad(piece, zero, [(0, 0, 0), *config, (0, 0, 0)]))
    return sum(made[1:], made[0])
