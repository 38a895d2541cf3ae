"""Reductions, cumulative sums, and the largest entries along an axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeter.intake.onnx.ops.values import (
    Table,
    backend,
    cast,
    ints,
    known,
    optional_ints,
    positive_axes,
)


def _reduction(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction; its axes are an attribute in old opsets and an input in new ones."""

    def apply(
        x: Any,
        over: Any = None,
        *,
        axes: list[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Any:
        chosen = optional_ints(axes if over is None else over, "axes") or []
        if chosen or noop_with_empty_axes:
            along = positive_axes(chosen, x.ndim)
        else:
            along = tuple(range(x.ndim))
        return cast(reduce(backend(x), x, axis=along, keepdims=bool(keepdims)), x.dtype)

    return apply


def _l1(xp: Any, x: Any, **over: Any) -> Any:
    return xp.sum(xp.abs(x), **over)


def _l2(xp: Any, x: Any, **over: Any) -> Any:
    """The norm; its gradient at the zero vector is zero."""
    squares = xp.sum(xp.square(x), **over)
    return xp.where(squares == 0, 0, xp.sqrt(xp.where(squares == 0, 1, squares)))


def _sum_square(xp: Any, x: Any, **over: Any) -> Any:
    return xp.sum(xp.square(x), **over)


def _log_sum(xp: Any, x: Any, **over: Any) -> Any:
    return xp.log(xp.sum(x, **over))


def _log_sum_exp(xp: Any, x: Any, **over: Any) -> Any:
    return jax.nn.logsumexp(x, **over)


def _largest(xp: Any, x: Any, **over: Any) -> Any:
    return _extreme("max", xp, x, **over)


def _smallest(xp: Any, x: Any, **over: Any) -> Any:
    return _extreme("min", xp, x, **over)


def _extreme(name: str, xp: Any, x: Any, **over: Any) -> Any:
    """The extreme, infinite over nothing; of truth values, all or any."""
    if jnp.issubdtype(x.dtype, jnp.bool_):
        return (xp.any if name == "max" else xp.all)(x, **over)
    if jnp.issubdtype(x.dtype, jnp.floating):
        initial = -np.inf if name == "max" else np.inf
    else:
        limits = jnp.iinfo(x.dtype)
        initial = limits.min if name == "max" else limits.max
    # Without an initial value unless needed: its gradient is then exact at infinities too.
    empty = any(x.shape[axis] == 0 for axis in over["axis"])
    return getattr(xp, name)(x, **over, **({"initial": initial} if empty else {}))


def _named(name: str) -> Callable[..., Any]:
    return lambda xp, x, **over: getattr(xp, name)(x, **over)


def _argument(name: str) -> Callable[..., Any]:
    """ArgMax or ArgMin."""

    def apply(x: Any, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
        xp = backend(x)
        find = getattr(xp, name)
        if select_last_index:
            found = x.shape[axis] - 1 - find(xp.flip(x, axis), axis=axis, keepdims=bool(keepdims))
        else:
            found = find(x, axis=axis, keepdims=bool(keepdims))
        return cast(found, np.int64)

    return apply


def _cumulative(name: str) -> Callable[..., Any]:
    """CumSum or CumProd; `exclusive` leaves each entry itself out."""

    def apply(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Any:
        xp = backend(x)
        (along,) = positive_axes(ints(axis, "axis"), x.ndim)
        if reverse:
            x = xp.flip(x, along)
        if exclusive:
            before = (slice(None),) * along
            first = xp.full_like(x[(*before, slice(1))], 0 if name == "cumsum" else 1)
            x = xp.concatenate([first, x[(*before, slice(-1))]], axis=along)
        out = getattr(xp, name)(x, axis=along, dtype=x.dtype)
        return xp.flip(out, along) if reverse else out

    return apply


def top_k(
    x: Any,
    count: Any = None,
    *,
    axis: int = -1,
    k: int | None = None,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Any, Any]:
    """TopK, always sorted, of equals the first; the count is an attribute before opset 10."""
    wanted = int(k or 0) if count is None else int(known(count, "K").reshape(()))
    if not 0 <= wanted <= x.shape[axis]:  # others allocate as many before they look
        raise ValueError(f"it asks for the {wanted:,} largest of {x.shape[axis]:,}.")
    xp = backend(x)
    moved = xp.moveaxis(x, axis, -1)
    # What rises as the rank falls; unlike `-`, `~` cannot overflow.
    descending = ~moved if jnp.issubdtype(x.dtype, jnp.integer) else -moved
    order = xp.argsort(descending if largest else moved, axis=-1, stable=True)[..., :wanted]
    values = xp.take_along_axis(moved, order, axis=-1)
    indices = cast(order, np.int64)
    return xp.moveaxis(values, -1, axis), xp.moveaxis(indices, -1, axis)


TABLE: Table = {
    "ArgMax": _argument("argmax"),
    "ArgMin": _argument("argmin"),
    "CumProd": _cumulative("cumprod"),
    "CumSum": _cumulative("cumsum"),
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _reduction(_largest),
    "ReduceMean": _reduction(_named("mean")),
    "ReduceMin": _reduction(_smallest),
    "ReduceProd": _reduction(_named("prod")),
    "ReduceSum": _reduction(_named("sum")),
    "ReduceSumSquare": _reduction(_sum_square),
    "TopK": top_k,
}
