"""RNN, LSTM and GRU by `lax.scan`; what the inputs give all gates is one product beforehand."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table

_Step = Callable[[tuple[Any, ...], Any], tuple[Any, ...]]


def rnn(
    x: Any,
    w: Any,
    r: Any,
    bias: Any = None,
    lengths: Any = None,
    initial_h: Any = None,
    *,
    activations: Sequence[str] = ("Tanh",),
    **attributes: Any,
) -> tuple[Any, Any]:
    """RNN."""

    def cell(r: Any, b: Any, p: Any, limit: Any, functions: Sequence[Any]) -> _Step:
        (f,) = functions

        def step(state: tuple[Any, ...], given: Any) -> tuple[Any, ...]:
            (h,) = state
            return (f(limit(given + h @ r + b[1])),)

        return step

    y, (h,) = _recurrent(
        cell, 1, x, w, r, bias, lengths, (initial_h,), None, activations, **attributes
    )
    return y, h


def lstm(
    x: Any,
    w: Any,
    r: Any,
    bias: Any = None,
    lengths: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    peepholes: Any = None,
    *,
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Tanh"),
    input_forget: int = 0,
    **attributes: Any,
) -> tuple[Any, Any, Any]:
    """LSTM, its gates in the order input, output, forget, cell.

    `clip` bounds what goes into the gates; as in onnxruntime, not the cell on its way out.
    """

    def cell(r: Any, b: Any, p: Any, limit: Any, functions: Sequence[Any]) -> _Step:
        f, g, h_of = functions
        pi, po, pf = (0, 0, 0) if p is None else jnp.split(p, 3)

        def step(state: tuple[Any, ...], given: Any) -> tuple[Any, ...]:
            h, c = state
            i, o, forget, new = jnp.split(given + h @ r + b[1], 4, axis=-1)
            i = f(limit(i + pi * c if p is not None else i))
            keep = 1 - i if input_forget else f(limit(forget + pf * c if p is not None else forget))
            c = keep * c + i * g(limit(new))
            o = f(limit(o + po * c if p is not None else o))
            return o * h_of(c), c

        return step

    states = (initial_h, initial_c)
    y, (h, c) = _recurrent(
        cell, 4, x, w, r, bias, lengths, states, peepholes, activations, **attributes
    )
    return y, h, c


def gru(
    x: Any,
    w: Any,
    r: Any,
    bias: Any = None,
    lengths: Any = None,
    initial_h: Any = None,
    *,
    activations: Sequence[str] = ("Sigmoid", "Tanh"),
    linear_before_reset: int = 0,
    **attributes: Any,
) -> tuple[Any, Any]:
    """GRU, its gates in the order update, reset, hidden."""

    def cell(r: Any, b: Any, p: Any, limit: Any, functions: Sequence[Any]) -> _Step:
        f, g = functions
        size = r.shape[0]
        gates, hidden = r[:, : 2 * size], r[:, 2 * size :]
        gates_bias, hidden_bias = b[1][: 2 * size], b[1][2 * size :]

        def step(state: tuple[Any, ...], given: Any) -> tuple[Any, ...]:
            (h,) = state
            if linear_before_reset:
                products = h @ r + b[1]
                both, own = products[..., : 2 * size], products[..., 2 * size :]
            else:
                both = h @ gates + gates_bias
            z, reset = jnp.split(f(limit(given[..., : 2 * size] + both)), 2, axis=-1)
            if linear_before_reset:
                own = reset * own
            else:
                own = (reset * h) @ hidden + hidden_bias
            new = g(limit(given[..., 2 * size :] + own))
            return ((1 - z) * new + z * h,)

        return step

    y, (h,) = _recurrent(
        cell, 3, x, w, r, bias, lengths, (initial_h,), None, activations, **attributes
    )
    return y, h


def _recurrent(
    cell: Callable[..., _Step],
    gates: int,
    x: Any,
    w: Any,
    r: Any,
    bias: Any,
    lengths: Any,
    initial: Sequence[Any],
    peepholes: Any,
    activations: Sequence[str],
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Any, list[Any]]:
    """All outputs `[t, directions, n, d]` and the last states; batch first in layout 1."""
    x = jnp.asarray(x)
    if layout:
        x = jnp.swapaxes(x, 0, 1)
    directions, size, n = w.shape[0], r.shape[2], x.shape[1]
    if bias is None:
        bias = jnp.zeros((directions, 2 * gates * size), x.dtype)
    starts = [
        jnp.zeros((directions, n, size), x.dtype)
        if state is None
        else jnp.swapaxes(state, 0, 1)
        if layout
        else jnp.asarray(state)
        for state in initial
    ]
    limit = (lambda v: v) if clip is None else partial(jnp.clip, min=-clip, max=clip)
    if len(activations) * (directions == 2) and len(activations) < 2 * _COUNTS[gates]:
        activations = [*activations, *activations]
    functions = list(_functions(activations, activation_alpha, activation_beta))
    each = len(functions) // directions
    outputs, ends = [], []
    for i in range(directions):
        backwards = direction == "reverse" or i == 1
        b = jnp.reshape(bias[i], (2, -1))
        p = None if peepholes is None else peepholes[i]
        step = cell(jnp.transpose(r[i]), b, p, limit, functions[i * each : (i + 1) * each])
        given = (_turned(x, lengths) if backwards else x) @ jnp.transpose(w[i]) + b[0]
        y, end = _run(step, tuple(state[i] for state in starts), given, lengths)
        outputs.append(_turned(y, lengths) if backwards else y)
        ends.append(end)
    y = jnp.stack(outputs, axis=1)
    last = [jnp.stack(states) for states in zip(*ends, strict=True)]
    if layout:
        return jnp.moveaxis(y, 2, 0), [jnp.swapaxes(state, 0, 1) for state in last]
    return y, last


def _run(
    step: _Step, start: tuple[Any, ...], given: Any, lengths: Any
) -> tuple[Any, tuple[Any, ...]]:
    """The first state after each step, and the states at the end of each sequence."""

    def one(state: tuple[Any, ...], at: tuple[Any, Any]) -> tuple[tuple[Any, ...], Any]:
        now, inside = at
        after = step(state, now)
        if inside is None:
            return after, after[0]
        kept = tuple(
            jnp.where(inside[:, None], new, old) for new, old in zip(after, state, strict=True)
        )
        return kept, jnp.where(inside[:, None], after[0], 0)

    inside = None
    if lengths is not None:
        inside = jnp.arange(given.shape[0])[:, None] < jnp.asarray(lengths)
    end, y = lax.scan(one, start, (given, inside))
    return y, end


def _turned(x: Any, lengths: Any) -> Any:
    """Every sequence backwards, what lies beyond its end left where it is."""
    if lengths is None:
        return jnp.flip(x, axis=0)
    t = jnp.arange(x.shape[0])[:, None]
    order = jnp.where(t < jnp.asarray(lengths), jnp.asarray(lengths) - 1 - t, t)
    return jnp.take_along_axis(x, order[..., None], axis=0)


# --- activations --------------------------------------------------------------------------------

_COUNTS = {1: 1, 3: 2, 4: 3}  # activations of one direction, by the number of gates

_PLAIN: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}
# With their parameters' defaults: alpha, and beta if they have one.
_SHAPED: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "elu": (lambda x, a: jax.nn.elu(x, a), (1.0,)),
    "hardsigmoid": (lambda x, a, b: jnp.clip(a * x + b, 0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, a: jax.nn.leaky_relu(x, a), (0.01,)),
    "scaledtanh": (lambda x, a, b: a * jnp.tanh(b * x), (1.0, 1.0)),
    "thresholdedrelu": (lambda x, a: jnp.where(x > a, x, 0), (1.0,)),
}


def _functions(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]
) -> Iterator[Callable[[Any], Any]]:
    """The activations, each taking the next alpha and beta if it has such."""
    given = [iter(alphas), iter(betas)]
    for name in map(str.lower, names):
        if name in _PLAIN:
            yield _PLAIN[name]
        elif name in _SHAPED:
            function, defaults = _SHAPED[name]
            values = [next(left, default) for left, default in zip(given, defaults, strict=False)]
            yield lambda x, f=function, values=values: f(x, *values)  # type: ignore[misc]
        else:
            raise ValueError(f"its activation {name!r} is unknown.")


TABLE: Table = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
