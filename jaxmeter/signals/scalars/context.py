"""What scalar signals compare a record with: means and second moments of all records."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxmeter.gradients.factors import Term, as_matrices, materialised, row_factors
from jaxmeter.gradients.per_example import of_loss
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.signals.scalars.names import COMPARE, names_of
from jaxmeter.signals.scalars.values import NOTHING, TINY, Context, Whitening, pooled
from jaxmeter.target import LOGITS, Target, layer_of

_DAMPING = 0.1  # of a second moment's mean eigenvalue, added to all
_WIDEST = 2048  # inputs or outputs of a layer of which more than variances are taken
_LARGEST = 1024  # records at once in the first pass


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
    if not COMPARE.intersection(kinds):
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
    if not COMPARE.intersection(kinds):
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
        unsure = jnp.maximum(-jnp.expm1(-loss), TINY)
        pairs, gradients, outputs, weights = {}, {}, {}, {}
        for name in names if "alignment" in kinds else ():
            factors = row_factors(terms[name])
            if factors is not None:
                pairs[name] = (factors[0] * weight, factors[1] * (weight / unsure))
                weights[name] = as_matrices(terms[name], target.params[name])
        for name in names if "mean cosine" in kinds else ():
            gradients[name] = formed(terms[name], weight)
        for layer in layers if "class distance" in kinds else ():
            value = out.logits if layer == LOGITS else out.layers.get(layer)
            if value is not None and jnp.issubdtype(value.dtype, jnp.floating):
                outputs[layer] = pooled(value) * weight
        classes = jax.nn.one_hot(y, out.logits.shape[-1]) * weight
        return (pairs, gradients, outputs, classes), weights

    found, weights = jax.vmap(one, out_axes=(0, None))(x, y, is_real.astype(jnp.float32))
    return (*found, weights)


def formed(term: Term, weight: Array) -> Any:
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
            name: value / max(squares[layer_of(name)] ** 0.5, TINY)
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
    return Whitening(left, right, white / max(float(np.sqrt(np.square(white).sum())), TINY))


def _root_of_inverse(moments: NDArray) -> NDArray:
    """`R` with `R R^T` the inverse of the damped moments; of variances, the inverse roots."""
    mean = np.trace(moments) / len(moments) if moments.ndim == 2 else moments.mean()
    damping = _DAMPING * mean if mean > 0 else 1.0
    if moments.ndim == 1:
        return 1 / np.sqrt(moments + damping)
    lower = scipy.linalg.cholesky(moments + damping * np.eye(len(moments)), lower=True)
    return scipy.linalg.solve_triangular(lower, np.eye(len(moments)), lower=True).T
