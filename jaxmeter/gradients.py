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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core
from jax.typing import ArrayLike

from jaxmeter.lowering import bind, lowered
from jaxmeter.target import Outputs, Target, layer_of, resolve_variables


class Outer(NamedTuple):
    """The gradient of a Dense kernel, factored: `gradient[i, j] = a[i] * delta[j]`.

    Attributes:
      a: the layer's input, `[..., d_in]`.
      delta: the error at its pre-activation, `[..., d_out]`; also the gradient of its bias.

    >>> grad = Outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    >>> grad.materialise().tolist(), round(float(grad.norm()), 2)
    ([[3.0, 4.0], [6.0, 8.0]], 11.18)
    """

    a: Array
    delta: Array

    def materialise(self) -> Array:
        """The gradient itself, `[..., d_in, d_out]`."""
        return self.a[..., :, None] * self.delta[..., None, :]

    def norm(self) -> Array:
        """Its Frobenius norm, `[...]`, as `|a| |delta|` (Goodfellow 2015, arXiv:1510.01799)."""
        return _norm(self.a, axis=-1) * _norm(self.delta, axis=-1)


Gradient = Array | Outer


def cross_entropy(logits: Array, y: ArrayLike) -> Array:
    """`-log softmax(logits)[y]` over the last axis.

    Computed as `softplus(logsumexp over the other classes - logits[y])`, so that a confident
    record's tiny loss keeps its relative precision instead of rounding to zero.
    """
    y = jnp.asarray(y)
    is_y = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_y, -jnp.inf, logits), axis=-1)
    own = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
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
    return _batched(target, x, y, params, _materialised)


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
) -> tuple[Outputs, Array, dict[str, Gradient]]:
    """One record's outputs, loss and gradients for resolved variable names, Dense kernels factored.

    `x` is one record without batch axis; outputs come without it too. Compose with `vmap`.
    """
    program = _trace(target, x)
    chosen = {name: target.params[name] for name in names}

    def loss_at(taps: list[Array] | None) -> tuple[Array, tuple[Outputs, list[_Use], list[Array]]]:
        out, uses, tapped = _run(program, target, x, chosen, taps)
        out = jax.tree.map(lambda leaf: leaf[0], out)
        return cross_entropy(out.logits, y), (out, uses, tapped)

    if not names:
        loss, (out, _, _) = loss_at([])
        return out, loss, {}
    shapes = _tap_shapes(lambda: loss_at(None)[1][2])
    taps = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    uses: list[_Use] = []

    def differentiated(taps: list[Array]) -> tuple[Array, tuple[Outputs, list[list[Array]]]]:
        loss, (out, found, _) = loss_at(taps)
        uses[:] = found  # the static description; its arrays leave through aux instead
        return loss, (out, [use.operands for use in found])

    # vjp, not grad: a tapped value may be complex (a Fourier layer), the loss is always real.
    loss, backward, (out, operands) = jax.vjp(differentiated, taps, has_aux=True)
    (deltas,) = backward(jnp.ones_like(loss))
    terms: dict[str, list[Gradient]] = {name: [] for name in names}
    for use, values in zip(uses, operands, strict=True):
        for name, gradient in use.gradients(values, [deltas[i] for i in use.taps], chosen).items():
            terms[name].append(gradient)
    return out, loss, {name: _total(terms[name], chosen[name]) for name in names}


def materialised(gradient: Gradient) -> Array:
    """A gradient as one array."""
    return gradient.materialise() if isinstance(gradient, Outer) else gradient


def gradient_norm(gradient: Gradient) -> Array:
    """Norm of one record's gradient of one variable, a scalar."""
    return gradient.norm() if isinstance(gradient, Outer) else _norm(gradient.ravel(), axis=-1)


def layer_norms(norms: dict[str, Array]) -> dict[str, Array]:
    """Joins variables' norms to layers' norms."""
    squares: dict[str, Array] = {}
    for name, norm in norms.items():
        layer = layer_of(name)
        squares[layer] = squares.get(layer, 0.0) + norm**2
    return {layer: jnp.sqrt(total) for layer, total in squares.items()}


def _materialised(gradient: Gradient) -> Array:
    return materialised(gradient)


def _batched(
    target: Target,
    x: ArrayLike,
    y: ArrayLike,
    params: Sequence[str | int] | None,
    form: Callable[[Gradient], Array],
) -> dict[str, Array]:
    names = resolve_variables(target.spec, params)
    found: dict[str, Array] = _mapped(target, jnp.asarray(x), jnp.asarray(y), names, form)
    return {name: found[name] for name in names}  # jit sorted the keys


@partial(jax.jit, static_argnames=("names", "form"))
def _mapped(
    target: Target, x: Array, y: Array, names: tuple[str, ...], form: Callable[[Gradient], Array]
) -> dict[str, Array]:
    def one(x: Array, y: Array) -> dict[str, Array]:
        gradients = of_loss(target, x.astype(target.spec.input_dtype), y, names)[2]
        return {name: form(gradient) for name, gradient in gradients.items()}

    return jax.vmap(one)(x, y)


def _norm(values: Array, axis: int) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(values), axis=axis))


def _total(terms: list[Gradient], variable: Array) -> Gradient:
    """The sum over a variable's uses; a single use keeps its form, no use is a zero gradient."""
    if not terms:
        return jnp.zeros_like(variable)
    if len(terms) == 1:
        return terms[0]
    return sum((materialised(term) for term in terms[1:]), materialised(terms[0]))


# --- the walk over the traced forward pass ------------------------------------------------------

# Calls whose body is walked when a chosen variable goes in; others are taken as one equation.
_TRANSPARENT = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}


class _Program(NamedTuple):
    """A forward pass of one record, traced."""

    closed: Any
    tree: Any


class _Derived(NamedTuple):
    """A value computed from one chosen variable alone (cast, reshape, broadcast, ...)."""

    name: str
    fun: Callable[[Array], Any]
    value: Any
    direct: bool  # still the variable itself, so its axes are the variable's axes


class _Use(NamedTuple):
    """An equation in which chosen variables meet other values."""

    eqn: Any
    derived: dict[int, _Derived]  # operand position -> how it comes from a variable
    operands: list[Array]  # the other operands' values, in order
    taps: list[int]  # indices into the list of taps, one an output that is not an integer

    def gradients(
        self, operands: list[Array], deltas: list[Array], chosen: dict[str, Array]
    ) -> dict[str, Gradient]:
        """What this use adds to the gradient of each variable in it."""
        found: dict[str, Gradient] = {}
        for name in dict.fromkeys(d.name for d in self.derived.values()):
            outer = self._outer(operands, deltas, chosen)
            found[name] = outer or self._transposed(name, operands, deltas, chosen)
        return found

    def _outer(
        self, operands: list[Array], deltas: list[Array], chosen: dict[str, Array]
    ) -> Outer | None:
        """`x @ kernel` with one row of x: the rank-one case."""
        if self.eqn.primitive.name != "dot_general" or len(self.derived) != 1:
            return None
        ((position, derived),) = self.derived.items()
        contracting, batch = self.eqn.params["dimension_numbers"]
        (other,) = operands
        kernel = derived.value
        rank_one = (
            derived.direct
            and kernel.ndim == 2
            and tuple(contracting[position]) == (0,)
            and not any(batch)
            and other.size == kernel.shape[0]
        )
        if not rank_one:
            return None
        dtype = chosen[derived.name].dtype  # the kernel itself may be a cast of the variable
        return Outer(*(v.reshape(-1).astype(dtype) for v in (other, deltas[0])))

    def _transposed(
        self, name: str, operands: list[Array], deltas: list[Array], chosen: dict[str, Array]
    ) -> Array:
        def forward(variable: Array) -> list[Array]:
            rest = iter(operands)
            args = [
                (d.fun(variable) if d.name == name else d.value)
                if (d := self.derived.get(i)) is not None
                else next(rest)
                for i in range(len(self.eqn.invars))
            ]
            return [out for out in bind(self.eqn, args) if _is_inexact(out)]

        (gradient,) = jax.vjp(forward, chosen[name])[1](deltas)
        return gradient


def _trace(target: Target, x: Array) -> _Program:
    def forward(params: Any, state: Any, x: Array) -> Outputs:
        return target.apply(params, state, x[None])

    args = (target.params, target.state, x)
    closed, shape = jax.make_jaxpr(lowered(forward), return_shape=True)(*args)
    return _Program(closed, jax.tree.structure(shape))


def _tap_shapes(tapped: Callable[[], list[Array]]) -> list[jax.ShapeDtypeStruct]:
    return jax.eval_shape(tapped)


def _run(
    program: _Program,
    target: Target,
    x: Array,
    chosen: dict[str, Array],
    taps: list[Array] | None,
) -> tuple[Outputs, list[_Use], list[Array]]:
    """Evaluates the forward pass, adding `taps` (None: only lists the values to be tapped)."""
    uses: list[_Use] = []
    tapped: list[Array] = []
    params = {
        name: _Derived(name, lambda v: v, value, True) if name in chosen else value
        for name, value in target.params.items()
    }
    is_leaf = lambda v: isinstance(v, _Derived)  # noqa: E731
    args = jax.tree.leaves((params, target.state, x), is_leaf=is_leaf)

    def tap(eqn: Any, args: list[Any]) -> list[Any]:
        derived = {i: a for i, a in enumerate(args) if isinstance(a, _Derived)}
        outs = bind(eqn, [_value(a) for a in args])
        indices = []
        for i, out in enumerate(outs):
            if _is_inexact(out):
                indices.append(len(tapped))
                tapped.append(out)
                if taps is not None:
                    outs[i] = out + taps[indices[-1]]
        operands = [a for a in args if not isinstance(a, _Derived)]
        uses.append(_Use(eqn, derived, operands, indices))
        return outs

    def walk(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            values = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]
            outs = step(eqn, values, [isinstance(v, core.Literal) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]

    def step(eqn: Any, values: list[Any], literal: list[bool]) -> list[Any]:
        derived = [v for v in values if isinstance(v, _Derived)]
        if not derived:
            return bind(eqn, values)
        if eqn.primitive.name in _TRANSPARENT:
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if isinstance(inner, core.ClosedJaxpr):
                return walk(inner.jaxpr, inner.consts, values)
            return walk(inner, (), values)
        alone = len(values) - len(derived) == sum(literal)
        if alone and len({d.name for d in derived}) == 1 and len(eqn.outvars) == 1:
            return [_derive(eqn, values)]
        return tap(eqn, values)

    outs = walk(program.closed.jaxpr, program.closed.consts, args)
    for i, out in enumerate(outs):
        if isinstance(out, _Derived):  # an output that is a variable: tap a copy of it
            real = jnp.issubdtype(jnp.result_type(out.value), jnp.floating)
            outs[i] = tap(_identity_of(out.value), [out])[0] if real else out.value
    return jax.tree.unflatten(program.tree, outs), uses, tapped


def _derive(eqn: Any, values: list[Any]) -> _Derived:
    """A value that still depends on one variable only, with the function that makes it."""
    first = next(v for v in values if isinstance(v, _Derived))

    def fun(variable: Array) -> Any:
        return bind(eqn, [v.fun(variable) if isinstance(v, _Derived) else v for v in values])[0]

    (value,) = bind(eqn, [_value(v) for v in values])
    same_axes = eqn.primitive.name in {"convert_element_type", "copy", "copy_p"}
    return _Derived(first.name, fun, value, first.direct and same_axes)


def _identity_of(value: Array) -> Any:
    (eqn,) = jax.make_jaxpr(jax.lax.reduce_precision, static_argnums=(1, 2))(
        value, jnp.finfo(value.dtype).nexp, jnp.finfo(value.dtype).nmant
    ).jaxpr.eqns
    return eqn


def _value(value: Any) -> Any:
    return value.value if isinstance(value, _Derived) else value


def _is_inexact(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))
