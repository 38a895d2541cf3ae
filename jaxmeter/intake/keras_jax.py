"""Keras 3 models on their own JAX backend, as targets.

Nothing is set on the caller's model and none of its arrays is kept. This module imports Keras;
reach it through `jaxmeter.intake`, which sees to the backend first.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import Array

from jaxmeter.intake.keras_pass import Pass, graph_of, runner
from jaxmeter.target import Outputs, Source, Target, TargetSpec

_PROBES = 5  # a batch size that no layer is likely to have as its own first axis
_SIZES = (16, 32, 64, 128, 256)  # tried in turn for input dimensions the model leaves open

_L = keras.layers


def from_keras(model: Any, origin: str) -> Target:
    """A target from a built Keras 3 model whose backend is JAX.

    Functional and Sequential models give every layer of `model.layers` (one called several times:
    its last output; one with several outputs: the first). A nested model's layers stand before it,
    as "inner/dense"; other composite layers (Bidirectional, blocks of one's own) are one layer.
    Subclassed models give the layers they hold as attributes, also in lists and dicts.

    Variables made to be trained are `params` even if their layer was frozen later: whoever has the
    model can differentiate by them all the same. The rest (BatchNorm moments, seeds) is `state`.
    Both are copies: the model may be trained, used or deleted afterwards.

    Args:
      model: the model, with one input and one output `[n, classes]`.
      origin: what to record as its origin.

    Raises:
      ValueError: if the model is not a classifier that can be audited; the message says why.
    """
    shape, dtype = _checked_input(model)
    layers = _unique(_layers_of(model))
    variables = _unique(_variables_of(model, layers))
    made_to_train = {id(v) for part in model._flatten_layers() for v in part._trainable_variables}
    params: dict[str, Array] = {}
    state: dict[str, Array] = {}
    for name, variable in variables.items():
        trainable = id(variable) in made_to_train and jnp.issubdtype(variable.dtype, jnp.floating)
        (params if trainable else state)[name] = jnp.array(variable.value)
    names = {id(layer): name for name, layer in layers.items()}
    run = runner(model)
    truncated = _is_truncated(model)
    quiet = _unwarned if truncated else contextlib.nullcontext

    def forward(params: dict[str, Array], state: dict[str, Array], x: Array) -> "Pass":
        values = [(variables[name], value) for name, value in (*params.items(), *state.items())]
        seen = Pass(names, x)
        with jax.numpy_rank_promotion("allow"), quiet(), keras.StatelessScope(values):
            seen.output = run(seen, x)
        return seen

    form = _survey(partial(forward, params, state), shape, dtype)
    probe = _probe(model, form)
    with jax.numpy_rank_promotion("allow"), quiet(), keras.StatelessScope():
        (original,) = jax.tree.leaves(model(probe, training=False))
    read = _reading(form.ending, original)

    def apply(params: dict[str, Array], state: dict[str, Array], x: Array) -> Outputs:
        seen = forward(params, state, jnp.asarray(x, form.dtype))
        logits = read.logits(seen.before_ending)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        kept = [name for name in layers if name in form.layers]
        return Outputs(logits, {name: seen.layers[name] for name in kept})

    difference = _difference(read.output(apply(params, state, probe).logits), original)
    return Target(
        params=params,
        state=state,
        apply=apply,
        spec=TargetSpec(
            input_shape=shape,
            n_classes=max(2, original.shape[1]),
            layers=tuple(name for name in layers if name in form.layers),
            variables=tuple(params),
            input_dtype=form.dtype,
            source=Source(
                route="keras-jax",
                origin=origin,
                versions=(("keras", keras.__version__), ("jax", jax.__version__)),
                logits=read.words + ("; its float64 parts run in float32" if truncated else ""),
                difference=difference,
            ),
        ),
    )


# --- names --------------------------------------------------------------------------------------


def _layers_of(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if isinstance(layer, _L.InputLayer):
            continue
        if graph_of(layer) is not None:
            yield from _layers_of(layer, f"{prefix}{layer.name}/")
        yield prefix + layer.name, layer


def _variables_of(model: Any, layers: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each variable as "layer/variable".

    Paths would not do: Keras' own lack their layers' names once a model comes from a file.
    """
    for name, layer in layers.items():
        if graph_of(layer) is None:
            yield from _owned(layer, name)
    yield from _owned(model, "")


def _owned(layer: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    seeds = [generator.state for generator in layer._seed_generators]
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables, *seeds):
        yield f"{prefix}/{variable.name}".lstrip("/"), variable
    for inner in layer._layers:
        yield from _owned(inner, f"{prefix}/{inner.name}")


def _unique(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """By name; a thing met again keeps its first name, a name met again gets a number."""
    found: dict[str, Any] = {}
    known: set[int] = set()
    for name, value in named:
        if id(value) in known:
            continue
        known.add(id(value))
        unique, count = name, 1
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found[unique] = value
    return found


# --- what goes in and what comes out ------------------------------------------------------------


class _Form(NamedTuple):
    """What a trace of the model shows."""

    record: tuple[int, ...]  # shape of a record it accepts
    dtype: str
    ending: str | None
    layers: frozenset[str]  # layers whose output has a row for each record


class _Reading(NamedTuple):
    """How logits are had from the output before its ending, and what they say in words."""

    logits: Callable[[Array], Array]
    output: Callable[[Array], Array]  # the model's own output, from the logits
    words: str


def _checked_input(model: Any) -> tuple[tuple[int | None, ...], str]:
    """Shape and dtype of a record, of a model with one input and one output."""
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built: it has no variables yet. Call it once on a "
            "batch of its data, or give it an Input, then load its weights."
        )
    inputs = getattr(model, "inputs", None)
    if inputs:
        if len(inputs) > 1:
            raise ValueError(
                f"the model {model.name!r} has {len(inputs)} inputs "
                f"({', '.join(x.name for x in inputs)}); a record here is one array. Wrap it in a "
                "function that takes one array apart and use jaxmeter.from_function."
            )
        if len(model.outputs) > 1:
            raise ValueError(
                f"the model {model.name!r} has {len(model.outputs)} outputs "
                f"({', '.join(model.output_names)}); an audit is of one classifier. Give it "
                "keras.Model(model.inputs, the output to audit)."
            )
        shape, dtype = tuple(inputs[0].shape[1:]), str(inputs[0].dtype)
    else:
        shapes = list((model._build_shapes_dict or {}).values())
        if len(shapes) != 1 or not all(d is None or isinstance(d, int) for d in shapes[0]):
            raise ValueError(
                f"the shape of a record is not known for {model.name!r}, a subclassed model built "
                f"with {model._build_shapes_dict}. Call it once on one array, a batch of its data."
            )
        shape, dtype = tuple(shapes[0][1:]), "float32"
    if dtype == "string":
        raise ValueError(
            f"the model {model.name!r} takes text, and JAX has no strings. Save it without its "
            "TextVectorization or StringLookup layers and audit it on the token numbers."
        )
    return shape, str(jax.dtypes.canonicalize_dtype(dtype))


def _is_truncated(model: Any) -> bool:
    """Whether the model asks for float64 where JAX is set to do without."""
    asked = {str(getattr(part, "dtype", "")) for part in model._flatten_layers()}
    return "float64" in asked and jax.dtypes.canonicalize_dtype("float64") != "float64"


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without JAX's warning, once an operation, that float64 becomes float32; `Source` says it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype")
        yield


def _survey(forward: Callable[[Array], Pass], shape: tuple[int | None, ...], dtype: str) -> _Form:
    """Traces a forward pass, finding sizes for open dimensions."""

    def traced(n: int, record: tuple[int, ...]) -> tuple[Pass, Any]:
        passes: list[Pass] = []

        def outputs(x: Array) -> Any:
            passes.append(forward(x))
            return passes[0].output, passes[0].layers

        shapes = jax.eval_shape(outputs, jax.ShapeDtypeStruct((n, *record), dtype))
        return passes[0], shapes

    for size in _SIZES if None in shape else _SIZES[:1]:
        record = tuple(size if d is None else d for d in shape)
        try:
            traced(1, record)
            seen, (output, layers) = traced(_PROBES, record)
            break
        except Exception as error:
            cause = error
    else:
        raise ValueError(
            f"the model cannot be run on records of shape {shape}, one at a time and {_PROBES} at "
            "a time, as an audit must; a stateful or fixed-batch model cannot. "
            f"Keras says: {str(cause).strip().splitlines()[0]}"
        ) from cause
    output = jax.tree.leaves(output)
    if len(output) != 1 or output[0].ndim != 2 or output[0].shape[0] != _PROBES:
        raise ValueError(
            f"the model gives {', '.join(str(o.shape) for o in output)} for {_PROBES} records; a "
            "classifier gives one array [n, classes]. Sequence, segmentation and embedding models "
            "cannot be audited as they are: wrap the part to audit with jaxmeter.from_function."
        )
    kept = {k for k, v in layers.items() if v.ndim and v.shape[0] == _PROBES}
    return _Form(record, "int32" if seen.takes_tokens else dtype, seen.ending, frozenset(kept))


def _probe(model: Any, form: _Form) -> Array:
    """A few seeded random records that the model can take."""
    random = np.random.default_rng(0)
    shape = (_PROBES, *form.record)
    if jnp.issubdtype(form.dtype, jnp.floating):
        return jnp.asarray(random.normal(size=shape), form.dtype)
    tables = [p.input_dim for p in model._flatten_layers() if isinstance(p, _L.Embedding)]
    high = min(tables, default=256 if form.dtype == "uint8" else 2)
    return jnp.asarray(random.integers(0, high, shape), form.dtype)


def _reading(ending: str | None, output: Array) -> _Reading:
    """How to have logits, given the ending that was recognised and the output on a probe."""
    width = output.shape[1]
    if ending == "softmax" and width > 1:
        return _Reading(lambda z: z, jax.nn.softmax, "final softmax taken off")
    if ending == "sigmoid" and width == 1:
        words = "one sigmoid unit: its logit z as the two logits [0, z], whose softmax is [1-p, p]"
        return _Reading(_beside_zero, lambda z: jax.nn.softmax(z)[:, 1:], words)
    if ending == "sigmoid":
        raise ValueError(
            f"the model ends in {width} sigmoid units, so it is multi-label: a record has many "
            "labels and no single cross-entropy. Audit one label at a time: "
            "keras.Model(model.inputs, one column of its output)."
        )
    total = jnp.sum(output, axis=1)
    in_range = bool(jnp.all((output >= 0) & (output <= 1)))
    loss = "log p: float32 has lost what confident records differ in. Better save the model before"
    if width == 1 and ending is None and in_range:
        warnings.warn(f"the model gives one probability; its logits are {loss} it.", stacklevel=4)
        words = "logs of the probability the model gives and of its complement"
        return _Reading(
            lambda p: jnp.concatenate([jnp.log1p(-_below_one(p)), _log(p)], axis=1),
            lambda z: jax.nn.softmax(z)[:, 1:],
            words,
        )
    if width == 1:
        raise ValueError(
            "the model gives one number that is no probability, so it is a regression, or its "
            "sigmoid lies outside it. Audits need classes: append a sigmoid and load that."
        )
    if ending is None and in_range and bool(jnp.all(jnp.abs(total - 1) < 1e-2)):
        warnings.warn(
            "the model's outputs are probabilities, but not by a final softmax that can be taken "
            f"off; its logits are {loss} that step.",
            stacklevel=4,
        )
        return _Reading(_log, jnp.exp, "logs of the probabilities the model gives")
    return _Reading(lambda z: z, lambda z: z, "the model's outputs as they are")


def _beside_zero(z: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(z), z], axis=1)


def _log(p: Array) -> Array:
    """`log p`, finite where p has underflowed."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _below_one(p: Array) -> Array:
    return jnp.minimum(p, 1 - jnp.finfo(p.dtype).epsneg)


def _difference(ours: Array, original: Array) -> float:
    """Largest absolute difference, if it is one that rounding explains."""
    difference = float(jnp.max(jnp.abs(ours - original.astype(ours.dtype))))
    scale = max(1.0, float(jnp.max(jnp.abs(original))))
    allowed = max(1e-4, 8 * float(jnp.finfo(original.dtype).eps)) * scale
    if not difference <= allowed:
        raise ValueError(
            f"the target's output differs from the model's by {difference:.2g} on a probe batch "
            f"(allowed: {allowed:.2g}), so every figure of an audit would be wrong. Likely the "
            "model draws random numbers in inference, or keeps state between calls; otherwise "
            "please report it. jaxmeter.from_function takes any function of your own."
        )
    return difference
