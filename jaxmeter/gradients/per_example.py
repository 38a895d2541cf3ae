"""Per-example gradients of a target's loss, each layer in its cheapest exact form.

`vmap(grad)` is the definition. It is computed here another, exactly equal way: the traced forward
pass is walked equation by equation, and wherever a chosen variable meets an activation a zero
("tap") is added to the result. One backward pass with respect to all taps gives every
back-propagated error `delta` at once, whatever number of layers was chosen, and no deeper than the
first of them. A variable's gradient is then the transpose of its own equation applied to `delta`;
for a Dense layer that is the outer product of its input and `delta`, which is kept factored.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxmeter.gradients.factors import (
    Term,
    gradient_norm,
    materialised,
    total,
)
from jaxmeter.gradients.rules import Use
from jaxmeter.gradients.taps import run, trace
from jaxmeter.jaxpr.chunks import by_chunks
from jaxmeter.target import Outputs, Target, layer_of, resolve_variables


def cross_entropy(logits: Array, y: ArrayLike) -> Array:
    """`-log softmax(logits)[y]` over the last axis.

    Computed as `softplus(logsumexp over the other classes - logits[y])`, so that a confident
    record's tiny loss keeps its relative precision instead of rounding to zero.
    """
    y = jnp.asarray(y)
    is_y = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_y, -jnp.inf, logits), axis=-1)
    # A masked sum and no index: the gradient of an index scatters, one record after the other.
    own = jnp.where(is_y.any(axis=-1), jnp.where(is_y, logits, 0).sum(axis=-1), jnp.nan)
    return jax.nn.softplus(others - own)


def per_example_gradients(
    target: Target, x: ArrayLike, y: ArrayLike, params: Sequence[str | int] | None = None
) -> dict[str, Array]:
    """Gradients of each record's cross-entropy loss.

    Args:
      target: the classifier.
      x: records `[n, ...]`.
      y: labels, int `[n]`.
      params: which variables, by variable name ("dense_3/kernel"), layer name or 1-based position
        among the layers with trainable variables; None for all. Nothing else is differentiated.

    Returns:
      `{variable name: [n, *variable shape]}`, in model order. Equal to
      `jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))`; may be used under jit, vmap and grad.

    Raises:
      ValueError: for a name the target does not have; the message lists the nearest.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))})
    >>> per_example_gradients(net, jnp.ones((5, 3)), jnp.zeros(5, int))["w"].shape
    (5, 3, 2)
    """
    return _batched(target, x, y, params, materialised)


def gradient_norms(
    target: Target, x: ArrayLike, y: ArrayLike, params: Sequence[str | int] | None = None
) -> dict[str, Array]:
    """Euclidean norms of each record's gradients, one a variable.

    Arguments as `per_example_gradients`. A Dense kernel's norm is `|a| |delta|`; its gradient is
    never formed.

    Returns:
      `{variable name: [n]}`, not negative. A layer's norm is the root of the sum of its squares.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": jnp.zeros((3, 2))})
    >>> norms = gradient_norms(net, jnp.ones((1, 3)), jnp.zeros(1, int))
    >>> f"{norms['w'][0]:.4f}"  # |x| |p - onehot| = sqrt(3) sqrt(1/2)
    '1.2247'
    """
    return _batched(target, x, y, params, gradient_norm)


def of_loss(
    target: Target, x: Array, y: Array, names: Sequence[str]
) -> tuple[Outputs, Array, dict[str, Term]]:
    """One record's outputs, loss and gradients for resolved variable names, Dense kernels factored.

    `x` is one record without batch axis; outputs come without it too. Compose with `vmap`.
    """
    program = trace(target, x)
    chosen = {name: target.params[name] for name in names}

    def loss_at(taps: list[Array] | None) -> tuple[Array, tuple[Outputs, list[Use], list[Array]]]:
        out, uses, tapped = run(program, target, x, chosen, taps)
        out = jax.tree.map(lambda leaf: leaf[0], out)
        return cross_entropy(out.logits, y), (out, uses, tapped)

    if not names:
        loss, (out, _, _) = loss_at([])
        return out, loss, {}
    shapes = jax.eval_shape(lambda: loss_at(None)[1][2])
    taps = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    uses: list[Use] = []

    def differentiated(taps: list[Array]) -> tuple[Array, tuple[Outputs, list[list[Array]]]]:
        loss, (out, found, _) = loss_at(taps)
        uses[:] = found  # the static description; its arrays leave through aux instead
        return loss, (out, [use.operands for use in found])

    # vjp, not grad: a tapped value may be complex (a Fourier layer), the loss is always real.
    loss, backward, (out, operands) = jax.vjp(differentiated, taps, has_aux=True)
    (deltas,) = backward(jnp.ones_like(loss))
    terms: dict[str, list[Term]] = {name: [] for name in names}
    for use, values in zip(uses, operands, strict=True):
        for name, gradient in use.gradients(values, [deltas[i] for i in use.taps], chosen).items():
            terms[name].append(gradient)
    found = {name: total(terms[name] or [jnp.zeros_like(chosen[name])]) for name in names}
    return out, loss, found


def layer_norms(norms: dict[str, Array]) -> dict[str, Array]:
    """Joins variables' norms to layers' norms."""
    squares: dict[str, Array] = {}
    for name, norm in norms.items():
        layer = layer_of(name)
        squares[layer] = squares.get(layer, 0.0) + norm**2
    return {layer: jnp.sqrt(total) for layer, total in squares.items()}


def _batched(
    target: Target,
    x: ArrayLike,
    y: ArrayLike,
    params: Sequence[str | int] | None,
    form: Callable[[Term], Array],
) -> dict[str, Array]:
    names = resolve_variables(target.spec, params)
    found: dict[str, Array] = _mapped(target, jnp.asarray(x), jnp.asarray(y), names, form)
    return {name: found[name] for name in names}  # jit sorted the keys


@partial(jax.jit, static_argnames=("names", "form"))
def _mapped(
    target: Target, x: Array, y: Array, names: tuple[str, ...], form: Callable[[Term], Array]
) -> dict[str, Array]:
    def one(x: Array, y: Array) -> dict[str, Array]:
        gradients = of_loss(target, x.astype(target.spec.input_dtype), y, names)[2]
        return {name: form(gradient) for name, gradient in gradients.items()}

    return by_chunks(one, x, y)
