"""Scalar signals of one record: a number a layer, variable or view. One row of `KINDS` a kind."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxmeter.gradients.directions import projected
from jaxmeter.gradients.factors import Term, gradient_norm, materialised, row_factors
from jaxmeter.jaxpr.lowering import lowered
from jaxmeter.signals.scalars.values import TINY, OneRecord, Whitening, pooled
from jaxmeter.target import LOGITS, Outputs, Target, TargetSpec, layer_of

_PROJECTIONS = 4
_NEAREST = 1e-5  # distance to a class mean over the output's length; below, it is rounding


def of_record(record: OneRecord, kinds: tuple[str, ...]) -> dict[str, Array]:
    """Scalars of one record, by "kind" or "kind layer"; `SignalSpec` defines them."""
    found: dict[str, Array] = {}
    for kind in KINDS:
        if kind.name in kinds:
            values = kind.of(record)
            found |= {f"{kind.name} {place}".rstrip(): value for place, value in values.items()}
    return found


def _alignment(record: OneRecord) -> dict[str, Array]:
    return {
        name: -_cosine(_factored(record.terms[name]), whitening)
        for name, whitening in record.context.whitening.items()
    }


def _mean_cosine(record: OneRecord) -> dict[str, Array]:
    terms, mean = record.terms, record.context.mean
    found = {}
    for layer in dict.fromkeys(layer_of(name) for name in mean):
        mine = [name for name in mean if layer_of(name) == layer]
        product = sum(_inner_product(terms[name], mean[name]) for name in mine)
        found[layer] = product / _over(terms, mine)
    return found


def _class_distance(record: OneRecord) -> dict[str, Array]:
    found = {}
    for layer, centres in record.context.centres.items():
        value = pooled(_output(record.out, layer))
        least = jnp.maximum(_NEAREST * _length(value), TINY)  # the only one of its class: rounding
        found[layer] = -jnp.log(jnp.maximum(_length(value - centres[record.y]), least))
    return found


def _input_norm(record: OneRecord) -> dict[str, Array]:
    norm = _length(jax.grad(partial(_log_odds, record.target, y=record.y))(record.x))
    return {"": -jnp.log(jnp.maximum(norm, TINY))}


def _queries(record: OneRecord) -> dict[str, Array]:
    views = _views(record.x)
    return {name: _log_odds(record.target, view, record.y) for name, view in views.items()}


def _projections(record: OneRecord) -> dict[str, Array]:
    flat = projected(record.target, record.terms, seed=0, dimensions=_PROJECTIONS)
    flat = flat / _over(record.terms, record.terms)
    return {str(i): flat[i] for i in range(_PROJECTIONS)}


def _no_input_norm(target: TargetSpec) -> str:
    if jnp.issubdtype(target.input_dtype, jnp.inexact):
        return ""
    return f"the target takes {target.input_dtype}, and whole numbers have no gradient"


def _no_queries(target: TargetSpec) -> str:
    shape = target.input_shape
    if not shape or (len(shape) == 3 and 1 not in shape[:2]):
        return ""
    return f"records have the shape {shape}, and it mirrors and shifts images"


class Kind(NamedTuple):
    """A kind of scalar signal.

    Attributes:
      name: in `SignalSpec.scalars`; of letters and spaces.
      of: its values for one record, by what they are of: a layer, a variable, a view, or "".
      compares: whether they depend on what records have in common.
      reads_gradients: whether they need the gradients of all variables.
      lacks: why a target has no such signals, "" if it has.
    """

    name: str
    of: Callable[[OneRecord], dict[str, Array]]
    compares: bool = False
    reads_gradients: bool = False
    lacks: Callable[[TargetSpec], str] = lambda target: ""


KINDS = (
    Kind("alignment", _alignment, compares=True, reads_gradients=True),
    Kind("mean cosine", _mean_cosine, compares=True, reads_gradients=True),
    Kind("class distance", _class_distance, compares=True),
    Kind("input norm", _input_norm, lacks=_no_input_norm),
    Kind("queries", _queries, lacks=_no_queries),
    Kind("projections", _projections, reads_gradients=True),
)


# --- parts of them --------------------------------------------------------------------------------


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
