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
from jax.extend import core

from jaxmeter.convolutions import chosen_form, convolution
from jaxmeter.equations import bind

_P = ParamSpec("_P")
_R = TypeVar("_R")

_LOOPS = {"scan", "while"}
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "cond"),
    *("custom_jvp_call", "custom_vjp_call"),
}


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
        outs = _evaluated(closed.jaxpr, closed.consts, leaves, looped)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return run


# --- the walk over the program ------------------------------------------------------------------


def _evaluated(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], looped: bool) -> list[Any]:
    if not _has_work(jaxpr, looped):
        return list(core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*args))
    jaxpr = _with_pads_folded(jaxpr, looped)
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        values = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]
        env.update(zip(eqn.outvars, _step(eqn, values, looped), strict=True))
    return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]


def _step(eqn: Any, values: list[Any], looped: bool) -> list[Any]:
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        return [convolution(eqn, looped)(*values)]
    if name == "reduce_window_max" and _pools_by_slices(eqn):
        return [_max_pool(values[0], eqn.params)]
    looped = looped or name in _LOOPS
    if _bodies(eqn, looped):
        params = {key: _rewritten(value, looped) for key, value in eqn.params.items()}
        eqn = eqn.replace(params=params)
    return bind(eqn, values)


def _has_work(jaxpr: Any, looped: bool) -> bool:
    return any(
        eqn.primitive.name in {"conv_general_dilated", "reduce_window_max"}
        or any(_has_work(body, looped) for body in _bodies(eqn, looped))
        for eqn in jaxpr.eqns
    )


def _bodies(eqn: Any, looped: bool) -> list[Any]:
    """The programs inside an equation that are rewritten, as open jaxprs."""
    if eqn.primitive.name not in _CALLS | _LOOPS:
        return []
    found = []
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                found.append(getattr(inner, "jaxpr", inner))
    inner = found[0].eqns if eqn.primitive.name == "custom_jvp_call" else []
    lone = len(inner) == 1 and inner[0].primitive.name == "conv_general_dilated"
    # What `convolutions` left behind; lowering a second time changes nothing.
    is_ours = lone and chosen_form(inner[0], looped) in {"mixed", "canonical"}
    return [] if is_ours else found


def _rewritten(value: Any, looped: bool) -> Any:
    """A parameter of an equation, with the programs in it rewritten."""
    if isinstance(value, tuple):
        return tuple(_rewritten(item, looped) for item in value)
    if not isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return value
    jaxpr, consts = (value, ()) if isinstance(value, core.Jaxpr) else (value.jaxpr, value.consts)
    if not _has_work(jaxpr, looped) or jaxpr.constvars and not consts:
        return value
    types: list[Any] = [v.aval for v in jaxpr.invars]
    avals = [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak_type) for t in types]
    new = jax.make_jaxpr(lambda *args: _evaluated(jaxpr, consts, args, looped))(*avals)
    if isinstance(value, core.ClosedJaxpr):
        return new
    return value if new.consts else new.jaxpr


# --- zeros around an image ------------------------------------------------------------------


def _with_pads_folded(jaxpr: Any, looped: bool) -> Any:
    """The program with zero padding ahead of a convolution made the convolution's own.

    XLA does so by itself, but not for a program of one record that is mapped over records: then it
    writes the padded images. Where the convolution would take another form, it is left.
    """
    pads: dict[Any, Any] = {}  # result of a pad -> its equation's operand and configuration
    eqns = []
    for eqn in jaxpr.eqns:
        if (pad := _zero_pad(eqn)) is not None:
            pads[eqn.outvars[0]] = pad
        elif eqn.primitive.name == "conv_general_dilated":
            given = eqn
            while not isinstance(eqn.invars[0], core.Literal) and eqn.invars[0] in pads:
                folded = _folded(eqn, *pads[eqn.invars[0]])
                if folded is None or chosen_form(folded, looped) != chosen_form(given, looped):
                    break
                eqn = folded
        eqns.append(eqn)
    kept, read = [], set(_variables(jaxpr.outvars))
    for eqn in reversed(eqns):
        if read.intersection(eqn.outvars) or not pads.keys() & set(eqn.outvars):
            kept.append(eqn)
            read.update(_variables(eqn.invars))
    return jaxpr.replace(eqns=kept[::-1])


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [v for v in atoms if not isinstance(v, core.Literal)]


def _zero_pad(eqn: Any) -> tuple[Any, Any] | None:
    """What an equation pads with zeros and how, also one `jnp.pad` has wrapped in a jit."""
    if eqn.primitive.name == "pad":
        value = eqn.invars[1]
        zero = isinstance(value, core.Literal) and value.val == 0
        return (eqn.invars[0], eqn.params["padding_config"]) if zero else None
    if eqn.params.get("name") != "_pad" or len(eqn.invars) != 2:
        return None
    inner, value = eqn.params["jaxpr"].jaxpr, eqn.invars[1]
    if [e.primitive.name for e in inner.eqns] != ["convert_element_type", "pad"]:
        return None
    convert, pad = inner.eqns
    chained = pad.invars == [inner.invars[0], convert.outvars[0]]
    chained = chained and convert.invars == [inner.invars[1]] and inner.outvars == pad.outvars
    zero = isinstance(value, core.Literal) and value.val == 0
    return (eqn.invars[0], pad.params["padding_config"]) if zero and chained else None


def _folded(eqn: Any, image: Any, config: Sequence[tuple[int, int, int]]) -> Any | None:
    """A convolution that pads for itself, or None where that is not the same."""
    batch, channels, *spatial = eqn.params["dimension_numbers"].lhs_spec
    widths = [config[d] for d in (*spatial, batch, channels)]
    own = eqn.params["padding"]
    plain = set(eqn.params["lhs_dilation"]) == {1} and all(gap == 0 for _, _, gap in widths)
    grows = min(low for pair in (*own, *(w[:2] for w in widths)) for low in pair) >= 0
    if not plain or not grows or any(any(w) for w in widths[len(spatial) :]):
        return None
    padding = [
        (int(low + more), int(high + still))
        for (low, high), (more, still, _) in zip(own, widths[: len(spatial)], strict=True)
    ]
    return eqn.replace(
        invars=[image, eqn.invars[1]], params={**eqn.params, "padding": tuple(padding)}
    )


# --- max-pooling --------------------------------------------------------------------------------

_WIDE_WINDOW = 64


def _pools_by_slices(eqn: Any) -> bool:
    """XLA's gradient of max-pooling (select_and_scatter) is 3 to 20 times slower than slices'."""
    (x,), (out,) = (v.aval for v in eqn.invars), (v.aval for v in eqn.outvars)
    return (
        bool(jnp.issubdtype(x.dtype, jnp.floating))
        and all(d == 1 for d in eqn.params["base_dilation"])
        and sum(eqn.params["window_dimensions"]) <= _WIDE_WINDOW
        and 0 not in (*x.shape, *out.shape)
    )


def _max_pool(x: Array, params: dict[str, Any]) -> Array:
    """The maximum of strided slices, axis by axis.

    Of equal maxima the first in the window's row-major order gets the whole gradient, as in XLA's
    select_and_scatter; going from the last axis to the first keeps that order. A NaN wins.
    """
    padding = [(*pad, 0) for pad in params["padding"]]
    if any(any(config) for config in padding):
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    for axis in reversed(range(x.ndim)):
        width, stride = params["window_dimensions"][axis], params["window_strides"][axis]
        gap = params["window_dilation"][axis]
        count = (x.shape[axis] - (width - 1) * gap - 1) // stride + 1
        slices = [
            lax.slice_in_dim(x, k * gap, k * gap + (count - 1) * stride + 1, stride, axis)
            for k in range(width)
        ]
        x = slices[0]
        for later in slices[1:]:
            x = jnp.where((later > x) | (later != later), later, x)
    return x
