"""Keras 3 models as something to train anew: fresh variables, and the pass of a training step.

Nothing is set on the caller's model. This module imports Keras; reach it through
`jaxmeter.shadow.of_keras`.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax import Array

from jaxmeter.intake.frameworks import undisturbed
from jaxmeter.intake.heads import FinalLayer
from jaxmeter.intake.keras import internals
from jaxmeter.intake.keras.forward import ForwardPass, runner
from jaxmeter.intake.keras.model import layers_of, variables_of
from jaxmeter.intake.keras.target import from_keras
from jaxmeter.target import Target

Variables = dict[str, Array]


class Retrainable(NamedTuple):
    """A model's ways to be trained again, as pure functions.

    Attributes:
      target: the model as it is.
      init: `key -> (params, state)`, by the model's own initialisers.
      forward: `(params, state, x, key) -> (logits, state, penalty)`, in training mode. The penalty
        is the sum of the losses of regularisers and of `add_loss`.
      frozen: parameters that are not trained.
      project: the model's constraints, to be applied after a step; None if there are none.
    """

    target: Target
    init: Callable[[Array], tuple[Variables, Variables]]
    forward: Callable[[Variables, Variables, Array, Array], tuple[Array, Variables, Array]]
    frozen: tuple[str, ...]
    project: Callable[[Variables], Variables] | None


def anew(model: Any) -> Retrainable:
    """A built Keras 3 model on the JAX backend, to be trained again from fresh variables.

    Raises:
      ValueError: if it is no classifier with logits, or cannot be made again from its config.
    """
    target = from_keras(model, f"{type(model).__name__} {model.name!r}")
    layers = layers_of(model)
    variables = variables_of(model, layers)
    kept = _kept(model)
    frozen = tuple(name for name in target.params if id(variables[name]) in kept)
    if len(frozen) == len(target.params):
        raise ValueError(
            f"nothing of the model {model.name!r} can be trained: all of its layers are frozen. "
            "References would all be this one model; set layer.trainable = True."
        )
    values = {**target.params, **target.state}
    fresh = _fresh(model, {n: v for n, v in variables.items() if id(v) not in kept})
    order = [(name, variable) for name, variable in variables.items() if name in values]
    run, as_is = runner(model), target.spec.source.logits.startswith("the model's outputs")
    constraints = {
        name: variables[name].constraint
        for name in target.params
        if name not in frozen and variables[name].constraint is not None
    }

    def init(key: Array) -> tuple[Variables, Variables]:
        every = {**values, **fresh(key)}
        return {n: every[n] for n in target.params}, {n: every[n] for n in target.state}

    def forward(
        params: Variables, state: Variables, x: Array, key: Array
    ) -> tuple[Array, Variables, Array]:
        del key  # Keras' seeds are part of the state
        mapping = [(v, params[n] if n in params else state[n]) for n, v in order]
        scope = keras.StatelessScope(mapping, collect_losses=True)
        with jax.numpy_rank_promotion("allow"), scope:
            seen = ForwardPass({}, x, training=True)
            out = run(seen, x)
            leaf = jax.tree.leaves(out)[0]
            logits = _logits(seen.final(leaf), as_is)
            penalty = sum((jnp.sum(loss) for loss in model.losses), jnp.zeros(()))
            after = {n: scope.get_current_value(v) for n, v in order if n in state}
        return logits, after, penalty

    def project(params: Variables) -> Variables:
        with jax.numpy_rank_promotion("allow"):
            return {n: constraints[n](v) if n in constraints else v for n, v in params.items()}

    try:
        jax.eval_shape(forward, target.params, target.state, _record(target), jax.random.key(0))
    except Exception as error:
        raise ValueError(
            f"the model {model.name!r} cannot be run in training mode as a pure function: {error}"
        ) from error
    return Retrainable(target, init, forward, frozen, project if constraints else None)


def _record(target: Target) -> jax.ShapeDtypeStruct:
    shape = [8 if size is None else size for size in target.spec.input_shape or ()]
    return jax.ShapeDtypeStruct((2, *shape), target.spec.input_dtype)


def _kept(model: Any) -> set[int]:
    """Ids of the variables that are not drawn again: of frozen layers and of adapted ones."""
    found: set[int] = set()
    for layer in internals.all_layers(model):
        if not layer.trainable or hasattr(layer, "adapt"):
            own = (*internals.trained_variables(layer), *internals.other_variables(layer))
            found.update(id(variable) for variable in own)
    return found


def _logits(final: FinalLayer, as_is: bool) -> Array:
    """Logits of the model's output, by what it ends in."""
    value, before, ending = final
    if ending == "softmax" and value.shape[1] > 1:
        logits = before
    elif ending == "sigmoid" and value.shape[1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(before), before], axis=1)
    elif ending == "linear" or as_is:
        logits = value
    else:
        raise ValueError(
            "its output is a probability whose logits are not to be had in training (no softmax or "
            "sigmoid at the very end, or noise or an activity regulariser after it). Let it end in "
            "a softmax layer or in logits."
        )
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _fresh(model: Any, variables: dict[str, Any]) -> Callable[[Array], Variables]:
    """A function of a key that draws these variables as the model's own initialisers would.

    A twin of the model is made from its config in a scope in which Keras notes how each variable
    is to be drawn. Seeds that were given to initialisers do not count: models would be alike.
    """
    twin, initialisers = _twin(model)
    theirs = variables_of(twin, layers_of(twin))
    ours = variables_of(model, layers_of(model))
    shapes = [[(tuple(v.shape), v.dtype) for v in each.values()] for each in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the model {model.name!r} made again from its config has other variables than itself, "
            "so fresh initial weights cannot be drawn. Give its classes a get_config that says all "
            "of what they are made from, or use jaxmeter.shadow.of_functions."
        )
    pairs = dict(zip(ours, theirs.values(), strict=True))
    seeds = {
        id(generator.state)
        for layer in internals.all_layers(twin)
        for generator in internals.seed_generators(layer)
    }
    random = _random_initialisers(twin, initialisers)

    def fresh(key: Array) -> Variables:
        drawn: Variables = {}
        before = [initialiser.seed for initialiser in random]
        try:
            for i, name in enumerate(variables):
                variable, mine = pairs[name], jax.random.fold_in(key, i)
                if id(variable) in seeds:
                    drawn[name] = jax.random.bits(mine, (2,), "uint32").astype(variable.dtype)
                    continue
                for initialiser in random:
                    initialiser.seed = mine
                make = initialisers[id(variable)]
                with jax.numpy_rank_promotion("allow"):
                    drawn[name] = jnp.asarray(
                        make(tuple(variable.shape), dtype=variable.dtype), variable.dtype
                    )
        finally:
            for initialiser, seed in zip(random, before, strict=True):
                initialiser.seed = seed
        return drawn

    try:
        jax.eval_shape(fresh, jax.random.key(0))
    except Exception as error:
        raise ValueError(
            f"the initial weights of {model.name!r} are not a function of a key: {error}"
        ) from error
    return fresh


def _twin(model: Any) -> tuple[Any, dict[int, Any]]:
    """The model made again from its config, and how each of its variables is drawn, by id."""
    with undisturbed():
        try:
            with keras.StatelessScope():
                twin = type(model).from_config(copy.deepcopy(model.get_config()))
                if not twin.built:
                    twin.build_from_config(model.get_build_config())
                initialisers = {id(v): internals.initialiser(v) for v in _every(twin)}
        except Exception as error:
            raise ValueError(
                f"the model {model.name!r} cannot be made again from its config, so fresh initial "
                f"weights cannot be drawn ({type(error).__name__}: {error}). Give its classes "
                "get_config and from_config, or use jaxmeter.shadow.of_functions."
            ) from error
    return twin, initialisers


def _every(model: Any) -> list[Any]:
    return list(variables_of(model, layers_of(model)).values())


def _random_initialisers(twin: Any, initialisers: dict[int, Any]) -> list[Any]:
    """Every random initialiser of the twin: of its variables, and those that its layers hold."""
    held = [value for layer in internals.all_layers(twin) for value in vars(layer).values()]
    found = {id(v): v for v in (*held, *initialisers.values())}
    kind = keras.initializers.Initializer
    return [v for v in found.values() if isinstance(v, kind) and hasattr(v, "seed")]
