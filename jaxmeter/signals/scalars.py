"""Scalars of a record that mean the same under every model of a kind, and the pass they need first.

A number read from one coordinate of a gradient or an activation means nothing under another model,
whose units are in another order. These do not depend on any order (but for random projections,
which are there to compare with), so that reference models can say what is usual for a record. Some
compare a record with what all audited records have in common under that model (`Context`), which
takes a pass over them; no membership is looked at.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from jaxmeter.directions import projected
from jaxmeter.factors import Term, as_matrices, gradient_norm, materialised, row_factors
from jaxmeter.gradients import of_loss
from jaxmeter.lowering import lowered
from jaxmeter.memory import tree_bytes
from jaxmeter.target import LOGITS, Outputs, Target, layer_of

Scalar = Literal[
    "alignment", "mean cosine", "class distance", "input norm", "queries", "projections"
]
SCALARS: tuple[Scalar, ...] = (
    "alignment",
    "mean cosine",
    "class distance",
    "input norm",
    "queries",
    "projections",
)
_COMPARE = {"alignment", "mean cosine", "class distance"}  # with what records have in common
_DAMPING = 0.1  # of a second moment's mean eigenvalue, added to all
_WIDEST = 2048  # inputs or outputs of a layer of which more than variances are taken
_PROJECTIONS = 4
_NEAREST = 1e-5  # distance to a class mean over the output's length; below, it is rounding
_TINY = 1e-30
_LARGEST = 1024  # records at once in the first pass


class Whitening(NamedTuple):
    """Of one kernel: what makes the factors of its gradients white, and its weights in those terms.

    Attributes:
      left: for its inputs, `[B, d_in, d_in]`, or `[B, d_in]` where it is diagonal.
      right: for the errors at its outputs, `[B, d_out, d_out]` or `[B, d_out]`.
      weights: the kernel, whitened, of length 1; `[B, d_in, d_out]`.
    """

    left: Any
    right: Any
    weights: Any


class Context(NamedTuple):
    """What records have in common under one target; empty where nothing is compared with it.

    Attributes:
      whitening: by kernel.
      mean: the mean gradient by variable, of length 1 a layer, in the form of `_formed`.
      centres: mean outputs of each class by layer, `[classes, d]`.
    """

    whitening: dict[str, Whitening]
    mean: dict[str, Array]
    centres: dict[str, Array]


NOTHING = Context({}, {}, {})


def is_of(kind: str, name: str) -> bool:
    """Whether a scalar's name, "kind" or "kind layer", is of this kind."""
    return name == kind or name.startswith(f"{kind} ")


def names_of(target: Target, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The variables whose gradients these scalars need."""
    needing = {"alignment", "mean cosine", "projections"}
    return target.spec.variables if needing.intersection(kinds) else ()


def check(kinds: tuple[str, ...], target: Target) -> None:
    """ValueError for a kind of scalar that does not exist, or that this target does not have."""
    unknown = [kind for kind in kinds if kind not in SCALARS]
    if unknown:
        raise ValueError(f"there are no scalars {unknown}; there are {', '.join(SCALARS)}.")
    if "input norm" in kinds and not jnp.issubdtype(target.spec.input_dtype, jnp.inexact):
        raise ValueError(
            f"the target takes {target.spec.input_dtype}: whole numbers have no gradient, so there "
            "is no 'input norm'. Leave it out of the scalars."
        )
    shape = target.spec.input_shape
    if "queries" in kinds and shape and (len(shape) != 3 or 1 in shape[:2]):
        raise ValueError(
            f"records have the shape {shape}, and 'queries' mirrors and shifts images (height, "
            "width, channels). Leave it out of the scalars."
        )


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
        value = _pooled(_output(out, layer))
        least = jnp.maximum(_NEAREST * _length(value), _TINY)  # the only one of its class: rounding
        distance = jnp.maximum(_length(value - centres[y]), least)
        found[f"class distance {layer}"] = -jnp.log(distance)
    if "input norm" in kinds:
        norm = _length(jax.grad(partial(_log_odds, target, y=y))(x))
        found["input norm"] = -jnp.log(jnp.maximum(norm, _TINY))
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
    return product / jnp.maximum(length, _TINY)


def _factored(term: Term) -> tuple[Array, Array]:
    factors = row_factors(term)
    assert factors is not None, "of_record is given the gradients that the first pass had"
    return factors


def _inner_product(term: Term, formed: Array) -> Array:
    """Of a gradient and what `_formed` and a sum over records made of others."""
    factors = row_factors(term)
    if factors is None:
        return jnp.sum(materialised(term) * formed)
    return jnp.sum(jnp.matmul(factors[0], formed) * factors[1])


def _over(terms: dict[str, Term], names: Any) -> Array:
    """The length of some variables' gradients together, to divide by."""
    squares = [jnp.square(gradient_norm(terms[name])) for name in names]
    return jnp.maximum(jnp.sqrt(sum(squares[1:], squares[0])), _TINY)


def _output(out: Outputs, layer: str) -> Array:
    return out.logits if layer == LOGITS else out.layers[layer]


def _pooled(value: Array) -> Array:
    """Channels `[d]`, averaged over positions."""
    return value.mean(axis=tuple(range(value.ndim - 1)))


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


# --- of all records -------------------------------------------------------------------------------


class _Sums(NamedTuple):
    """Over records: second moments of a kernel's inputs and errors, gradients, outputs, classes.

    `weights` are the kernels in the same form.
    """

    inputs: dict[str, Any]
    errors: dict[str, Any]
    gradients: dict[str, Any]
    outputs: dict[str, Any]
    classes: Any
    weights: dict[str, Any]


def context_of(
    target: Target, x: ArrayLike, y: ArrayLike, kinds: tuple[str, ...], budget: int
) -> Context:
    """What records `x` `[n, ...]` with labels `y` have in common under the target.

    Batches are chosen by `budget`, bytes on the device; beyond rounding, the result does not depend
    on it.
    """
    if not _COMPARE.intersection(kinds):
        return NOTHING
    x, y = np.asarray(x), np.asarray(y, np.int32)
    run = partial(_summed, kinds=kinds)
    one = _batch(target, x, y, 0, 1)
    fixed = tree_bytes(target) + 2 * tree_bytes(jax.eval_shape(run, target, *one))
    each = 4 * tree_bytes(jax.eval_shape(partial(_parts, kinds=kinds), target, *one))
    batch = min(_LARGEST, len(y), max(1, (budget - fixed) // max(1, each)))
    batch = 2 ** (int(batch).bit_length() - 1)
    total: Any = None
    for start in range(0, len(y), batch):
        found = run(target, *_batch(target, x, y, start, batch))._replace(weights={})
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    weights = run(target, *_batch(target, x, y, 0, batch)).weights
    sums = _Sums(*jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), total))
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32),
        _settled(sums._replace(weights=jax.tree.map(np.asarray, weights)), len(y)),
    )


def context_shapes(target: Target, x: ArrayLike, kinds: tuple[str, ...]) -> Context:
    """The shapes of `context_of`."""
    if not _COMPARE.intersection(kinds):
        return NOTHING
    batch = (
        jax.ShapeDtypeStruct((1, *np.shape(x)[1:]), target.spec.input_dtype),
        jax.ShapeDtypeStruct((1,), "int32"),
        jax.ShapeDtypeStruct((1,), "bool"),
    )
    sums = jax.eval_shape(partial(_summed, kinds=kinds), target, *batch)
    whitening = {
        name: Whitening(sums.inputs[name], sums.errors[name], sums.weights[name])
        for name in sums.inputs
    }
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32),
        Context(whitening, sums.gradients, sums.outputs),
    )


def _batch(target: Target, x: NDArray, y: NDArray, start: int, batch: int) -> tuple[Any, ...]:
    """Records, labels, and which of them are not padding."""
    rows = np.arange(start, start + batch)
    inside = np.minimum(rows, len(y) - 1)
    return np.asarray(x[inside], target.spec.input_dtype), y[inside], rows < len(y)


@partial(jax.jit, static_argnames=("kinds",))  # traced once for all models of a kind
def _parts(
    target: Target, x: Array, y: Array, is_real: Array, *, kinds: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Array, dict[str, Any]]:
    """Each record's factors, gradients, outputs and class, 0 where it is padding; the kernels."""
    names = names_of(target, kinds)
    layers = dict.fromkeys((*target.spec.trainable_layers, LOGITS))

    def one(x: Array, y: Array, weight: Array) -> Any:
        out, loss, terms = of_loss(target, x, y, names)
        # Errors of the log-odds, the loss's over 1 - p: sure and unsure records count alike.
        unsure = jnp.maximum(-jnp.expm1(-loss), _TINY)
        pairs, gradients, outputs, weights = {}, {}, {}, {}
        for name in names if "alignment" in kinds else ():
            factors = row_factors(terms[name])
            if factors is not None:
                pairs[name] = (factors[0] * weight, factors[1] * (weight / unsure))
                weights[name] = as_matrices(terms[name], target.params[name])
        for name in names if "mean cosine" in kinds else ():
            gradients[name] = _formed(terms[name], weight)
        for layer in layers if "class distance" in kinds else ():
            value = out.logits if layer == LOGITS else out.layers.get(layer)
            if value is not None and jnp.issubdtype(value.dtype, jnp.floating):
                outputs[layer] = _pooled(value) * weight
        classes = jax.nn.one_hot(y, out.logits.shape[-1]) * weight
        return (pairs, gradients, outputs, classes), weights

    found, weights = jax.vmap(one, out_axes=(0, None))(x, y, is_real.astype(jnp.float32))
    return (*found, weights)


def _formed(term: Term, weight: Array) -> Any:
    """A gradient as the factors whose products are summed over records; or as it is."""
    factors = row_factors(term)
    return materialised(term) * weight if factors is None else (factors[0] * weight, factors[1])


@partial(jax.jit, static_argnames=("kinds",))
def _summed(target: Target, x: Array, y: Array, is_real: Array, *, kinds: tuple[str, ...]) -> _Sums:
    pairs, gradients, outputs, classes, weights = _parts(target, x, y, is_real, kinds=kinds)

    def moments(v: Array) -> Array:
        return jnp.einsum("nbti,nbti->bi" if v.shape[-1] > _WIDEST else "nbti,nbtj->bij", v, v)

    return _Sums(
        inputs={name: moments(a) for name, (a, _) in pairs.items()},
        errors={name: moments(delta) for name, (_, delta) in pairs.items()},
        gradients={
            name: jnp.einsum("nbti,nbtj->bij", *v) if isinstance(v, tuple) else v.sum(axis=0)
            for name, v in gradients.items()
        },
        outputs={layer: jnp.einsum("nc,nd->cd", classes, v) for layer, v in outputs.items()},
        classes=classes.sum(axis=0),
        weights=weights,
    )


def _settled(sums: _Sums, n: int) -> Context:
    """Sums as what one record is compared with."""
    squares: dict[str, float] = {}
    for name, value in sums.gradients.items():
        squares[layer_of(name)] = squares.get(layer_of(name), 0.0) + float(np.square(value).sum())
    return Context(
        whitening={
            name: _whitening(sums.inputs[name] / n, sums.errors[name] / n, weights)
            for name, weights in sums.weights.items()
        },
        mean={
            name: value / max(squares[layer_of(name)] ** 0.5, _TINY)
            for name, value in sums.gradients.items()
        },
        centres={
            layer: value / np.maximum(sums.classes, 1)[:, None]
            for layer, value in sums.outputs.items()
        },
    )


def _whitening(inputs: NDArray, errors: NDArray, weights: NDArray) -> Whitening:
    """From second moments `[B, d, d]` (or variances `[B, d]`) and the kernel `[B, d_in, d_out]`."""
    left, right = (
        np.stack([_root_of_inverse(moments) for moments in every]) for every in (inputs, errors)
    )
    white = weights.astype(np.float64)
    white = np.swapaxes(left, 1, 2) @ white if left.ndim == 3 else left[:, :, None] * white
    white = white @ right if right.ndim == 3 else white * right[:, None]
    return Whitening(left, right, white / max(float(np.sqrt(np.square(white).sum())), _TINY))


def _root_of_inverse(moments: NDArray) -> NDArray:
    """`R` with `R R^T` the inverse of the damped moments; of variances, the inverse roots."""
    mean = np.trace(moments) / len(moments) if moments.ndim == 2 else moments.mean()
    damping = _DAMPING * mean if mean > 0 else 1.0
    if moments.ndim == 1:
        return 1 / np.sqrt(moments + damping)
    lower = cholesky(moments + damping * np.eye(len(moments)), lower=True)
    return solve_triangular(lower, np.eye(len(moments)), lower=True).T
