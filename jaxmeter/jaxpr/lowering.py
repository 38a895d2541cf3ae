"""Convolutions and max-pooling in other forms, equal to them, where those are faster.

A traced program is evaluated equation by equation; an equation that a measured rule names is
replaced by others that compute the same. They are ordinary JAX, so the result may be
differentiated in either mode, mapped and looped like the original. The rules look at shapes only
and hold for XLA on CPU; on other platforms programs stay as they are.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxmeter.jaxpr.convolutions import chosen_form, convolution
from jaxmeter.jaxpr.equations import (
    CALLS,
    LOOPS,
    Body,
    Pad,
    Window,
    as_function,
    bind,
    bodies,
    body_of,
    convolution_of,
    is_literal,
    pad_of,
    values_of,
    variables,
    window_of,
    with_bodies,
    with_padding,
    wrapped_of,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Equations whose inner programs are rewritten.
_WALKED = CALLS | LOOPS | {"cond", "custom_jvp_call", "custom_vjp_call"}


def lowered(fun: Callable[_P, _R], *, looped: bool = False) -> Callable[_P, _R]:
    """A function equal to `fun` whose convolutions and max-poolings take their fastest form.

    The bodies of jit, remat, scan, while, cond and of functions with derivative rules of their own
    are rewritten too (but not those derivative rules).

    Args:
      fun: a function of arrays, in pytrees; dicts come back with sorted keys, as from `jax.jit`.
      looped: whether the result will be called inside a `lax.scan` or `while_loop`, where XLA's
        CPU backend runs convolutions in all layouts but one tens of times slower. `fun`'s own loops
        are seen.

    >>> def f(x, w):
    ...     return lax.conv_general_dilated(x, w, (1,), "VALID")
    >>> x, w = jnp.ones((1, 2, 5)), jnp.ones((3, 2, 1))
    >>> bool((lowered(f)(x, w) == f(x, w)).all())
    True
    """

    @wraps(fun)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if jax.default_backend() != "cpu":
            return fun(*args, **kwargs)
        leaves, tree = jax.tree.flatten((args, kwargs))

        def flat(*leaves: Any) -> _R:
            args, kwargs = jax.tree.unflatten(tree, leaves)
            return fun(*args, **kwargs)

        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        outs = _evaluated(body_of(closed), leaves, looped)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return run


# --- the walk over the program ------------------------------------------------------------------


def _evaluated(body: Body, args: Sequence[Any], looped: bool) -> list[Any]:
    if not _has_work(body.jaxpr, looped):
        return list(as_function(body)(*args))
    jaxpr = _with_pads_folded(body.jaxpr, looped)
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, body.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        values = values_of(eqn.invars, env)
        env.update(zip(eqn.outvars, _step(eqn, values, looped), strict=True))
    return values_of(jaxpr.outvars, env)


def _step(eqn: Any, values: list[Any], looped: bool) -> list[Any]:
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        return [convolution(eqn, looped)(*values)]
    if name == "reduce_window_max" and _pools_by_slices(eqn):
        return [_max_pool(values[0], window_of(eqn))]
    looped = looped or name in LOOPS

    def rewrite(body: Body) -> Callable[..., list[Any]] | None:
        has_work = _has_work(body.jaxpr, looped)
        return (lambda *args: _evaluated(body, args, looped)) if has_work else None

    if _bodies(eqn, looped):
        eqn = with_bodies(eqn, rewrite)
    return bind(eqn, values)


def _has_work(jaxpr: Any, looped: bool) -> bool:
    return any(
        eqn.primitive.name in {"conv_general_dilated", "reduce_window_max"}
        or any(_has_work(body.jaxpr, looped) for body in _bodies(eqn, looped))
        for eqn in jaxpr.eqns
    )


def _bodies(eqn: Any, looped: bool) -> list[Body]:
    """The programs inside an equation that are rewritten."""
    if eqn.primitive.name not in _WALKED:
        return []
    inner = wrapped_of(eqn)
    lone = inner is not None and inner.primitive.name == "conv_general_dilated"
    # What `convolutions` left behind; lowering a second time changes nothing.
    is_ours = lone and chosen_form(inner, looped) in {"mixed", "canonical"}
    return [] if is_ours else bodies(eqn)


# --- zeros around an image ------------------------------------------------------------------


def _with_pads_folded(jaxpr: Any, looped: bool) -> Any:
    """The program with zero padding ahead of a convolution made the convolution's own.

    XLA does so by itself, but not for a program of one record that is mapped over records: then it
    writes the padded images. Where the convolution would take another form, it is left.
    """
    pads: dict[Any, Pad] = {}  # by their result
    eqns = []
    for eqn in jaxpr.eqns:
        if (pad := _zero_pad(eqn)) is not None:
            pads[eqn.outvars[0]] = pad
        elif eqn.primitive.name == "conv_general_dilated":
            given = eqn
            while not is_literal(eqn.invars[0]) and eqn.invars[0] in pads:
                folded = _folded(eqn, pads[eqn.invars[0]])
                if folded is None or chosen_form(folded, looped) != chosen_form(given, looped):
                    break
                eqn = folded
        eqns.append(eqn)
    kept, read = [], set(variables(jaxpr.outvars))
    for eqn in reversed(eqns):
        if read.intersection(eqn.outvars) or not pads.keys() & set(eqn.outvars):
            kept.append(eqn)
            read.update(variables(eqn.invars))
    return jaxpr.replace(eqns=kept[::-1])


def _zero_pad(eqn: Any) -> Pad | None:
    """How an equation pads with zeros."""
    pad = pad_of(eqn)
    return pad if pad is not None and is_literal(pad.value) and pad.value.val == 0 else None


def _folded(eqn: Any, pad: Pad) -> Any | None:
    """A convolution that pads for itself, or None where that is not the same."""
    conv = convolution_of(eqn)
    batch, channels, *spatial = conv.lhs_spec
    widths = [pad.config[d] for d in (*spatial, batch, channels)]
    plain = set(conv.lhs_dilation) == {1} and all(gap == 0 for _, _, gap in widths)
    grows = min(low for pair in (*conv.padding, *(w[:2] for w in widths)) for low in pair) >= 0
    if not plain or not grows or any(any(w) for w in widths[len(spatial) :]):
        return None
    padding = [
        (int(low + more), int(high + still))
        for (low, high), (more, still, _) in zip(conv.padding, widths[: len(spatial)], strict=True)
    ]
    return with_padding(eqn, pad.image, padding)


# --- max-pooling --------------------------------------------------------------------------------

_WIDE_WINDOW = 64


def _pools_by_slices(eqn: Any) -> bool:
    """XLA's gradient of max-pooling (select_and_scatter) is 3 to 20 times slower than slices'."""
    (x,), (out,) = (v.aval for v in eqn.invars), (v.aval for v in eqn.outvars)
    return (
        bool(jnp.issubdtype(x.dtype, jnp.floating))
        and all(d == 1 for d in window_of(eqn).base_dilation)
        and sum(window_of(eqn).dimensions) <= _WIDE_WINDOW
        and 0 not in (*x.shape, *out.shape)
    )


def _max_pool(x: Array, window: Window) -> Array:
    """The maximum of strided slices, axis by axis.

    Of equal maxima the first in the window's row-major order gets the whole gradient, as in XLA's
    select_and_scatter; going from the last axis to the first keeps that order. A NaN wins.
    """
    padding = [(*pad, 0) for pad in window.padding]
    if any(any(config) for config in padding):
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    for axis in reversed(range(x.ndim)):
        width, stride = window.dimensions[axis], window.strides[axis]
        gap = window.dilation[axis]
        count = (x.shape[axis] - (width - 1) * gap - 1) // stride + 1
        slices = [
            lax.slice_in_dim(x, k * gap, k * gap + (count - 1) * stride + 1, stride, axis)
            for k in range(width)
        ]
        x = slices[0]
        for later in slices[1:]:
            x = jnp.where((later > x) | (later != later), later, x)
    return x
