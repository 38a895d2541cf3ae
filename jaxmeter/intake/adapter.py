"""From a forward pass to a target, whatever framework the pass came from.

How logits are read from the part of a model that is audited, and whether it computes what the
original does.
"""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmeter.intake.heads import (
    Choice,
    FinalLayer,
    Form,
    Head,
    OutputPlace,
    ProbeOutputs,
    check_row,
    chosen_head,
    cut,
)
from jaxmeter.intake.safety import budget
from jaxmeter.intake.safety.programs import CountedProgram
from jaxmeter.jaxpr.lowering import lowered
from jaxmeter.jaxpr.shapes import PROBES, Shape, TooExpensive, traced
from jaxmeter.target import Outputs, Source, Target, TargetSpec

_PACKAGE = str(Path(__file__).parents[1])

Forward = Callable[[dict[str, Any], dict[str, Any], Array], ProbeOutputs]


def as_target(
    forward: Forward,
    params: dict[str, Array],
    state: dict[str, Any],
    *,
    shape: Shape,
    dtype: str,
    original: Callable[[np.ndarray], Mapping[str, ArrayLike] | None],
    source: Source,
    output: Choice | None = None,
    tokens: int | None = None,
    framework: str = "the framework",
    note: str = "",
) -> Target:
    """The target that a forward pass makes, compared with the original on a probe batch.

    Args:
      forward: the pass; pure JAX, in inference mode.
      params: trainable arrays by "layer/variable", in model order. If `output` is given, those
        that it does not depend on become state: the part audited has no gradient by them.
      state: what else `forward` reads, by names of its own.
      shape: shape of one record, None where any length will do.
      dtype: of the model's input.
      original: the model's outputs by name for a batch, as its own framework computes them, after
        the pass itself was found to be affordable; None where there is no such framework. May leave
        outputs out.
      source: where the model came from; `logits` and `difference` are added to it.
      output: what to audit, see `load_target`; None for the model's only output.
      tokens: size of the smallest embedding table, if there are any.
      framework: who is to be quoted if the pass fails.
      note: said after how the logits were had.

    Raises:
      TooExpensive: if the pass takes more than the file may.
      ValueError: if the part is no classifier that can be audited, or is not reproduced.
    """
    form = _survey(lambda x: forward(params, state, x), shape, dtype, framework)
    head = chosen_head(form, output)
    check_row(form, head)
    with budget.holding((params, state), "the model's variables"):
        probe = _probe(form, tokens)
        outputs, final, theirs = _compared(forward, params, state, probe, head, original)
    read = _reading(form, head, final)
    ours = read.output(read.logits(final.before))
    if theirs is None:
        _difference(ours, final.value)  # is the ending what it seems?
        difference = None
    elif head.kind == "outputs" and head.name in theirs:
        difference = _difference(ours, cut(jnp.asarray(theirs[head.name]), head.indices))
    else:
        # A layer's own output is not to be had from the original; what follows it is.
        pairs = [(outputs[name], jnp.asarray(theirs[name])) for name in theirs]
        difference = max(_difference(*pair) for pair in [(ours, final.value), *pairs])

    order = tuple(params)
    layers = tuple(name for name, place in form.layers.items() if place.leaf.row is not None)
    kept = order
    if output is not None:
        kept = _read_by(lambda params: head.of(forward(params, state, probe)).before, params)

    @lowered
    def values(params: dict[str, Any], state: dict[str, Any], x: Array) -> tuple[Array, list[Any]]:
        every = {name: (params if name in params else state)[name] for name in order}
        rest = {name: value for name, value in state.items() if name not in every}
        seen = forward(every, rest, jnp.asarray(x, form.dtype))
        logits = read.logits(head.of(seen).before)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return logits, [seen.layers[name].value for name in layers]

    def apply(params: dict[str, Any], state: dict[str, Any], x: Array) -> Outputs:
        logits, outputs = values(params, state, x)
        return Outputs(logits, dict(zip(layers, outputs, strict=True)))

    of = f"; of {head}" if output is not None else ""
    read_by = set(kept)
    return Target(
        params={name: params[name] for name in kept},
        state={**state, **{name: params[name] for name in order if name not in read_by}},
        apply=apply,
        spec=TargetSpec(
            input_shape=shape,
            n_classes=max(2, final.value.shape[1]),
            layers=layers,
            variables=kept,
            input_dtype=form.dtype,
            source=replace(source, logits=read.words + of + note, difference=difference),
        ),
    )


# --- what the model takes and gives -------------------------------------------------------------


def _survey(
    forward: Callable[[Array], ProbeOutputs], shape: Shape, dtype: str, framework: str
) -> Form:
    """Traces a forward pass, finding sizes for open dimensions."""
    passes: list[tuple[dict[str, str | None], dict[str, str | None], bool]] = []

    def run(x: Array) -> list[Array]:
        seen = forward(x)
        outputs, layers = ({k: f.ending for k, f in part.items()} for part in seen[:2])
        passes.append((outputs, layers, seen.takes_tokens))
        return [final.value for part in seen[:2] for final in part.values()]

    try:
        record, leaves = traced(run, shape, dtype)
    except TooExpensive:
        raise
    except Exception as error:
        reason = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split()) or type(error).__name__
        reason = reason if len(reason) <= 300 else reason[:297] + "..."
        raise ValueError(
            f"the model cannot be run on records of shape {shape}, one at a time and {PROBES} at "
            "a time, as an audit must; a stateful or fixed-batch model cannot. "
            f"{framework} says: {reason}"
        ) from error
    outputs, layers, takes_tokens = passes[-1]
    places = iter(leaves)
    return Form(
        shape,
        record,
        "int32" if takes_tokens else dtype,
        {name: OutputPlace(next(places), ending) for name, ending in outputs.items()},
        {name: OutputPlace(next(places), ending) for name, ending in layers.items()},
    )


def _compared(
    forward: Forward,
    params: dict[str, Array],
    state: dict[str, Any],
    probe: Array,
    head: Head,
    original: Callable[[np.ndarray], Mapping[str, ArrayLike] | None],
) -> tuple[dict[str, Array], FinalLayer, Mapping[str, ArrayLike] | None]:
    """Outputs on the probe batch, the part to audit, and the original's outputs.

    Of the layers only those are computed that these depend on, so that what is alive at once is
    what a pass needs; and nothing is, in any framework, before it is known to be affordable.
    """
    ending: list[str | None] = []

    def values(params: Any, state: Any, x: Array) -> tuple[dict[str, Array], Array, Array]:
        seen = forward(params, state, x)
        value, before, *rest = head.of(seen)
        ending[:] = rest
        return {name: final.value for name, final in seen.outputs.items()}, value, before

    program = CountedProgram(f"its pass over {PROBES} records", values, params, state, probe)
    theirs = original(np.asarray(probe))
    outputs, value, before = program()
    return outputs, FinalLayer(value, before, ending[0]), theirs


def _probe(form: Form, tokens: int | None) -> Array:
    """A few seeded random records that the model can take."""
    random = np.random.default_rng(0)
    shape = (PROBES, *form.record)
    if jnp.issubdtype(form.dtype, jnp.floating):
        return jnp.asarray(random.normal(size=shape), form.dtype)
    high = tokens or (256 if form.dtype == "uint8" else 2)
    return jnp.asarray(random.integers(0, high, shape), form.dtype)


def _read_by(run: Callable[[dict[str, Array]], Array], params: dict[str, Array]) -> tuple[str, ...]:
    """Names of the parameters that a result may depend on.

    Conservative: what enters a loop or an inner function counts as read if anything of it is.
    """
    names = tuple(params)
    jaxpr = jax.make_jaxpr(lambda values: run(dict(zip(names, values, strict=True))))(
        list(params.values())
    ).jaxpr
    needed = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            needed.update(id(v) for v in equation.invars)
    return tuple(name for name, v in zip(names, jaxpr.invars, strict=True) if id(v) in needed)


# --- logits -------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """How logits are had from the output before its ending, and what they say in words."""

    logits: Callable[[Array], Array]
    output: Callable[[Array], Array]  # the model's own output, from the logits
    words: str


def _reading(form: Form, head: Head, final: FinalLayer) -> _Reading:
    """How to have logits from the part to audit, given its values on a probe."""
    output, ending = final.value, final.ending
    width = output.shape[1]
    if ending == "softmax" and width > 1:
        return _Reading(lambda z: z, jax.nn.softmax, "final softmax taken off")
    if ending == "sigmoid":
        place = getattr(form, head.kind)[head.name]
        what = "one sigmoid unit" if place.ending == "sigmoid" else "one class against the rest"
        words = f"{what}: its logit z as the two logits [0, z], whose softmax is [1-p, p]"
        return _Reading(_beside_zero, lambda z: jax.nn.softmax(z)[:, 1:], words)
    total = jnp.sum(output, axis=1)
    in_range = bool(jnp.all((output >= 0) & (output <= 1)))
    loss = "log p: float32 has lost what confident records differ in. Better save the model before"
    if width == 1 and ending is None and in_range:
        warnings.warn(
            f"{head.subject} gives one probability; its logits are {loss} it.", stacklevel=_above()
        )
        return _Reading(
            lambda p: jnp.concatenate([jnp.log1p(-_below_one(p)), _log(p)], axis=1),
            lambda z: jax.nn.softmax(z)[:, 1:],
            "logs of the probability the model gives and of its complement",
        )
    if width == 1 and ending == "softmax":
        raise ValueError(
            f"{head.subject} ends in a softmax over one unit, which is 1 whatever the record, so "
            "it tells no classes apart. One unit needs a sigmoid, two classes two units."
        )
    if width == 1:
        raise ValueError(
            f"{head.subject} gives one number that is no probability, so it is a regression, or "
            "its sigmoid lies outside it. Audits need classes. If there is such a sigmoid, append "
            "it and load that; no output= makes a regression a classifier."
        )
    if ending is None and in_range and bool(jnp.all(jnp.abs(total - 1) < 1e-2)):
        warnings.warn(
            f"the outputs of {head.subject} are probabilities, but not by a final softmax that can "
            f"be taken off; its logits are {loss} that step.",
            stacklevel=_above(),
        )
        return _Reading(_log, jnp.exp, "logs of the probabilities the model gives")
    sizes = [d for d in form.shape if d is not None]
    is_fixed = len(sizes) == len(form.shape) and form.dtype != "int32"
    if not head.chosen and is_fixed and width == math.prod(sizes):
        # An autoencoder of flat records looks just like this, but so does a classifier of 4
        # features into 4 classes, and nothing in the graph tells them apart. A warning is enough:
        # whoever has an autoencoder has no class labels to go on with.
        warnings.warn(
            f"the model gives as many numbers, {width}, as a record has numbers. If it is an "
            "autoencoder, these are no class scores and an audit means nothing. If it is a "
            "classifier, say output=1 to load it without this warning.",
            stacklevel=_above(),
        )
    return _Reading(lambda z: z, lambda z: z, "the model's outputs as they are")


def _above() -> int:
    """The level of a warning at which it is the caller's of this package, by whatever route."""
    level, found = 0, 0
    frame = inspect.currentframe()
    while (frame := frame.f_back if frame else None) is not None:
        level += 1
        if frame.f_code.co_filename.startswith(_PACKAGE):
            found = level
    return found + 1


def _beside_zero(z: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(z), z], axis=1)


def _log(p: Array) -> Array:
    """`log p`, finite where p has underflowed."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _below_one(p: Array) -> Array:
    return jnp.minimum(p, 1 - jnp.finfo(p.dtype).epsneg)


def _difference(ours: Array, original: Array) -> float:
    """Largest absolute difference, if it is one that rounding explains."""
    eps = jnp.finfo(original.dtype).eps if jnp.issubdtype(original.dtype, jnp.floating) else 0
    original = original.astype(jnp.promote_types(original.dtype, jnp.float32))
    difference = float(jnp.max(jnp.abs(ours - original)))
    scale = max(1.0, float(jnp.max(jnp.abs(original))))
    allowed = max(1e-4, 8 * float(eps)) * scale
    if not difference <= allowed:
        raise ValueError(
            f"the target's output differs from the model's by {difference:.2g} on a probe batch "
            f"(allowed: {allowed:.2g}), so every figure of an audit would be wrong. Likely the "
            "model draws random numbers in inference, or keeps state between calls; otherwise "
            "please report it. jaxmeter.from_function takes any function of your own."
        )
    return difference
