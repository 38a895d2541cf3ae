"""Scalar signals of one record: a number a layer or variable."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxmeter.gradients.directions import projected
from jaxmeter.gradients.factors import Term, gradient_norm, materialised, row_factors
from jaxmeter.jaxpr.lowering import lowered
from jaxmeter.signals.scalars.context import TINY, Context, Whitening, pooled
from jaxmeter.target import LOGITS, Outputs, Target, layer_of

_PROJECTIONS = 4
_NEAREST = 1e-5  # distance to a class mean over the output's length; below, it is rounding


# --- of one record --------------------------------------------------------------------------------


def of_record(
    target: Target,
    x: Array,
    y: Array,
    out: Outputs,
    terms: dict[str, Term],
    kinds: tuple[str, ...],
    context: Context,
) -> dict[str, Array]:
    """Scalars of one record, by "kind layer"; `SignalSpec` defines them.

    `terms` are its gradients with respect to `names_of(target, kinds)`.
    """
    found: dict[str, Array] = {}
    for name, whitening in context.whitening.items():
        found[f"alignment {name}"] = -_cosine(_factored(terms[name]), whitening)
    for layer in dict.fromkeys(layer_of(name) for name in context.mean):
        mine = [name for name in context.mean if layer_of(name) == layer]
        product = sum(_inner_product(terms[name], context.mean[name]) for name in mine)
        found[f"mean cosine {layer}"] = product / _over(terms, mine)
    for layer, centres in context.centres.items():
        value = pooled(_output(out, layer))
        least = jnp.maximum(_NEAREST * _length(value), TINY)  # the only one of its class: rounding
        distance = jnp.maximum(_length(value - centres[y]), least)
        found[f"class distance {layer}"] = -jnp.log(distance)
    if "input norm" in kinds:
        norm = _length(jax.grad(partial(_log_odds, target, y=y))(x))
        found["input norm"] = -jnp.log(jnp.maximum(norm, TINY))
    if "queries" in kinds:
        for name, view in _views(x).items():
            found[f"queries {name}"] = _log_odds(target, view, y)
    if "projections" in kinds:
        flat = projected(target, terms, seed=0, dimensions=_PROJECTIONS) / _over(terms, terms)
        found |= {f"projections {i}": flat[i] for i in range(_PROJECTIONS)}
    return found


def _cosine(factors: tuple[Array, Array], whitening: Whitening) -> Array:
    """Of a gradient and the weights, both white."""
    a, delta = (
        jnp.einsum("bti,bij->btj", v, w) if w.ndim == 3 else v * w[:, None]
        for v, w in zip(factors, (whitening.left, whitening.right), strict=True)
    )
    if a.shape[1] == 1:
        product = jnp.sum(jnp.matmul(a, whitening.weights) * delta)
        length = _length(jnp.sqrt(jnp.sum(a**2, -1) * jnp.sum(delta**2, -1)))
    else:
        gradient = jnp.einsum("bti,btj->bij", a, delta)
        product, length = jnp.sum(gradient * whitening.weights), _length(gradient)
    return product / jnp.maximum(length, TINY)


def _factored(term: Term) -> tuple[Array, Array]:
    factors = row_factors(term)
    assert factors is not None, "of_record is given the gradients that the first pass had"
    return factors


def _inner_product(term: Term, formed: Array) -> Array:
    """Of a gradient and what `formed` and a sum over records made of others."""
    factors = row_factors(term)
    if factors is None:
        return jnp.sum(materialised(term) * formed)
    return jnp.sum(jnp.matmul(factors[0], formed) * factors[1])


def _over(terms: dict[str, Term], names: Any) -> Array:
    """The length of some variables' gradients together, to divide by."""
    squares = [jnp.square(gradient_norm(terms[name])) for name in names]
    return jnp.maximum(jnp.sqrt(sum(squares[1:], squares[0])), TINY)


def _output(out: Outputs, layer: str) -> Array:
    return out.logits if layer == LOGITS else out.layers[layer]


def _length(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(v)))


def _log_odds(target: Target, x: Array, y: Array) -> Array:
    """Of the record's class: its logit less the logsumexp of the others."""
    forward = lowered(lambda params, state, x: target.apply(params, state, x).logits)
    logits = forward(target.params, target.state, x[None])[0]
    is_y = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_y, -jnp.inf, logits))
    return jnp.sum(jnp.where(is_y, logits, 0)) - others


def _views(x: Array) -> dict[str, Array]:
    """An image mirrored, and shifted by a pixel in four directions; edges are reflected."""
    height, width = x.shape[:2]
    wide = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    corners = {"down": (0, 1), "up": (2, 1), "right": (1, 0), "left": (1, 2)}
    shifted = {
        name: wide[top : top + height, left : left + width] for name, (top, left) in corners.items()
    }
    return {"mirror": x[:, ::-1], **shifted}
