"""From a forward pass to a target, whatever framework the pass came from.

What part of a model is audited, how logits are read from it, and whether it computes what the
original does.
"""

import difflib
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxmeter.lowering import lowered
from jaxmeter.shapes import PROBES, Leaf, Shape, traced
from jaxmeter.target import Outputs, Source, Target, TargetSpec

# A model output's name or 1-based position, or a layer's name; then 0-based indices into a record's
# row of it.
Choice = str | int | tuple[str | int, *tuple[int, ...]]

_LARGEST = 2**30  # elements of a layer's output for a few records
_STACK = 6  # from a warning here up to the caller of load_target


class WrongChoice(TypeError):
    """What was given as `output` is of no form that chooses anything."""


class Final(NamedTuple):
    """An array that a model computes, and what it went through last.

    Attributes:
      value: the array, `[n, ...]`.
      before: the same before a final softmax or sigmoid, if one was recognised; else `value`.
      ending: "softmax" (over the last axis) or "sigmoid"; "linear" if nothing squashed it, so that
        it may be logits; None if that is not known. Static: the same in every trace.
    """

    value: Array
    before: Array
    ending: str | None


class Seen(NamedTuple):
    """One forward pass.

    Attributes:
      outputs: the model's outputs by name, in the model's order.
      layers: every layer's output by layer name, in model order.
      takes_tokens: an embedding or a gather reads the input itself, so records are integers.
    """

    outputs: dict[str, Final]
    layers: dict[str, Final]
    takes_tokens: bool


Forward = Callable[[dict[str, Any], dict[str, Any], Array], Seen]


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
      original: the model's outputs by name for a batch, as its own framework computes them; None
        where there is no such framework. May leave outputs out.
      source: where the model came from; `logits` and `difference` are added to it.
      output: what to audit, see `load_target`; None for the model's only output.
      tokens: size of the smallest embedding table, if there are any.
      framework: who is to be quoted if the pass fails.
      note: said after how the logits were had.

    Raises:
      ValueError: if the part is no classifier that can be audited, or is not reproduced.
    """
    form = _survey(lambda x: forward(params, state, x), shape, dtype, framework)
    head = _chosen(form, output)
    _check_row(form, head)
    probe = _probe(form, tokens)
    theirs = original(np.asarray(probe))
    seen = forward(params, state, probe)
    final = head.of(seen)
    read = _reading(form, head, final)
    ours = read.output(read.logits(final.before))
    if theirs is None:
        _difference(ours, final.value)  # is the ending what it seems?
        difference = None
    elif head.kind == "outputs" and head.name in theirs:
        difference = _difference(ours, _cut(jnp.asarray(theirs[head.name]), head.indices))
    else:
        # A layer's own output is not to be had from the original; what follows it is.
        pairs = [(seen.outputs[name].value, jnp.asarray(theirs[name])) for name in theirs]
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
    return Target(
        params={name: params[name] for name in kept},
        state={**state, **{name: params[name] for name in order if name not in kept}},
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


class _Place(NamedTuple):
    """One array that the model computes, as tracing shows it."""

    leaf: Leaf
    ending: str | None


class _Form(NamedTuple):
    """What tracing a model shows."""

    shape: Shape  # of a record
    record: tuple[int, ...]  # the same with sizes for open dimensions that the model accepts
    dtype: str
    outputs: dict[str, _Place]
    layers: dict[str, _Place]


def _survey(forward: Callable[[Array], Seen], shape: Shape, dtype: str, framework: str) -> _Form:
    """Traces a forward pass, finding sizes for open dimensions."""
    passes: list[tuple[dict[str, str | None], dict[str, str | None], bool]] = []

    def run(x: Array) -> list[Array]:
        seen = forward(x)
        outputs, layers = ({k: f.ending for k, f in part.items()} for part in seen[:2])
        passes.append((outputs, layers, seen.takes_tokens))
        return [final.value for part in seen[:2] for final in part.values()]

    try:
        record, leaves = traced(run, shape, dtype)
    except Exception as error:
        reason = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split()) or type(error).__name__
        reason = reason if len(reason) <= 300 else reason[:297] + "..."
        raise ValueError(
            f"the model cannot be run on records of shape {shape}, one at a time and {PROBES} at "
            "a time, as an audit must; a stateful or fixed-batch model cannot. "
            f"{framework} says: {reason}"
        ) from error
    if (largest := max((math.prod(leaf.full) for leaf in leaves), default=0)) > _LARGEST:
        raise ValueError(
            f"the model computes an array of {largest:,} elements for {PROBES} records, too large "
            "to audit it here; it may be damaged."
        )
    outputs, layers, takes_tokens = passes[-1]
    places = iter(leaves)
    return _Form(
        shape,
        record,
        "int32" if takes_tokens else dtype,
        {name: _Place(next(places), ending) for name, ending in outputs.items()},
        {name: _Place(next(places), ending) for name, ending in layers.items()},
    )


def _probe(form: _Form, tokens: int | None) -> Array:
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


# --- the part to audit --------------------------------------------------------------------------


class _Head(NamedTuple):
    """Which array is audited, and which part of a record's row of it."""

    kind: str  # "outputs" or "layers", the field of `Seen`
    name: str
    indices: tuple[int, ...]
    chosen: bool  # by the user

    def __str__(self) -> str:
        part = "".join(f"[{i}]" for i in self.indices)
        return f"{self.kind[:-1]} {self.name!r}{part}"

    @property
    def subject(self) -> str:
        """What to call it in an error."""
        return str(self) if self.chosen else "the model"

    def at(self, *index: int) -> str:
        """The argument that would choose a part of it."""
        return f"output=({', '.join(map(repr, (self.name, *self.indices, *index)))})"

    def of(self, seen: Seen) -> Final:
        """The part as `[n, units]`."""
        value, before, ending = getattr(seen, self.kind)[self.name]
        if ending == "softmax" and len(self.indices) == value.ndim - 1 and value.shape[-1] > 1:
            # One class against all others, whose log-odds are exact from the logits.
            z = before[(slice(None), *self.indices[:-1])]
            one = self.indices[-1] % z.shape[-1]
            rest = jax.nn.logsumexp(jnp.delete(z, one, axis=-1), axis=-1, keepdims=True)
            return Final(_cut(value, self.indices), z[:, one : one + 1] - rest, "sigmoid")
        return Final(_cut(value, self.indices), _cut(before, self.indices), ending)


def _cut(array: Array, index: tuple[int, ...]) -> Array:
    """The part of each row at an index; a single number as a row of one."""
    for axis, i in enumerate(index, start=1):
        size = array.shape[axis]
        if not -size <= i < size:  # JAX would clamp it and say nothing
            raise ValueError(f"index {i} is outside the {size} along axis {axis - 1} of a record.")
    part = array[(slice(None), *index)]
    return part[:, None] if part.ndim == 1 else part


def _chosen(form: _Form, output: Choice | None) -> _Head:
    """What `output` means for this model."""
    names = tuple(form.outputs)
    if output is None:
        if len(names) == 1:
            return _Head("outputs", names[0], (), chosen=False)
        raise ValueError(
            f"the model has {len(names)} outputs ({', '.join(names)}), and an audit is of one "
            f"classifier, so one must be chosen: output={names[0]!r}, or output=1 by its position "
            f"(--head {names[0]} on the command line). "
            f"{_listing(form)}"
        )
    name, *index = output if isinstance(output, tuple) and output else (output,)
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in index)
    if not isinstance(name, str | int) or isinstance(name, bool) or not whole:
        raise WrongChoice(
            f"output={output!r}, but it is a name, a 1-based position, or one of these followed "
            f'by 0-based integers that choose a part: ("tags", 3). {_listing(form)}'
        )
    if isinstance(name, int):
        if not 1 <= name <= len(names):
            raise ValueError(f"there is no output number {name}. {_listing(form)}")
        name = names[name - 1]
    if name in form.outputs:
        return _Head("outputs", name, tuple(index), chosen=True)
    if name in form.layers:
        return _Head("layers", name, tuple(index), chosen=True)
    near = difflib.get_close_matches(name, [*names, *form.layers], n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"the model has neither an output nor a layer {name!r}.{hint} {_listing(form)} "
        f"Its layers: {', '.join(form.layers) or 'none'}."
    )


def _listing(form: _Form) -> str:
    """The model's outputs and what each could be audited as."""
    uses = {name: _use(name, place) for name, place in form.outputs.items()}
    listing = "; ".join(
        f"{i}: {name} {_words(place)}: {uses[name] or 'no class scores'}"
        for i, (name, place) in enumerate(form.outputs.items(), start=1)
    )
    none = "" if any(uses.values()) else " None of them can be audited as a classifier."
    return f"The outputs, as one record has them, are {listing}.{none} A layer's name will do too."


def _words(place: _Place) -> str:
    if place.leaf.row is None:
        return f"{place.leaf.full} for {PROBES} records"
    ending = {"linear": "linear", None: "of another kind"}.get(
        place.ending, f"after a {place.ending}"
    )
    return f"{_shown(place.leaf.row)}, {ending}"


def _shown(row: Shape) -> str:
    sizes = ["?" if d is None else str(d) for d in row]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _use(name: str, place: _Place) -> str | None:
    """What an output could be audited as; None if it holds no class scores."""
    row, ending = place.leaf.row, place.ending
    if row is None or not jnp.issubdtype(place.leaf.dtype, jnp.floating):
        return None
    units = row[-1] if row else 1
    if len(row) > 1:
        one = ", ".join("0" for _ in row[1:])
        if units == 1 and ending == "linear":
            return None
        return f"a classifier at each position, output=({name!r}, {one}) the first"
    if ending == "sigmoid":
        return "2 classes" if units == 1 else f"{units} labels, output=({name!r}, 0) the first"
    if units == 1:
        return "2 classes if it is a probability" if ending is None else None
    return f"{units} classes" if ending == "softmax" else f"{units} classes if they are logits"


def _check_row(form: _Form, head: _Head) -> None:
    """Raises unless tracing leaves it possible that the part is a row of class scores."""
    leaf, ending = getattr(form, head.kind)[head.name]
    if leaf.row is None:
        raise ValueError(
            f"{head.subject} gives {leaf.full} for {PROBES} records, so not one row for each. An "
            f"audit needs each record's own class scores. {_listing(form)}"
        )
    if len(head.indices) > len(leaf.row):
        raise ValueError(
            f"{head.at()} has {len(head.indices)} indices, but a record's row of it has only "
            f"{len(leaf.row)} axes: {_shown(leaf.row)}."
        )
    for axis, (i, size) in enumerate(zip(head.indices, leaf.row, strict=False)):
        size = leaf.full[axis + 1] if size is None else size
        if not -size <= i < size:
            raise ValueError(
                f"{head.at()}: index {i} is outside the {size} along axis {axis} of a record's row "
                f"{_shown(leaf.row)}; indices are counted from 0, negative ones from the end."
            )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"{head.subject} gives {leaf.dtype} numbers, class numbers perhaps, but no scores of "
            f"the classes. Choose what they are made from: output= a layer's name. {_listing(form)}"
        )
    row = leaf.row[len(head.indices) :]
    copied = _like_input(form, row)
    if len(row) > 1:
        first = head.at(*[0] * (len(row) - 1))
        last = head.at(*[-1] * (len(row) - 1))
        gives = _shown((PROBES, *row))
        raise ValueError(
            f"{head.subject} gives {gives} for {PROBES} records; a classifier gives one array "
            f"[n, classes]. {copied}If it classifies each position (a time step, a pixel), audit "
            f"one of them: {first} is the first, {last} the last. If it does not, no output= makes "
            "this array a classifier; a layer that is one can be chosen by its name."
        )
    units = row[0] if row else 1
    if ending == "sigmoid" and units != 1:
        pair = " Two such units may also be one label's two classes; either serves." * (units == 2)
        raise ValueError(
            f"{head.subject} ends in {units} sigmoid units, so it is multi-label: a record has "
            f"many labels and no single cross-entropy. {copied}Audit one label at a time: "
            f"{head.at(0)} is the first, a model of two classes.{pair}"
        )


def _like_input(form: _Form, row: Shape) -> str:
    """A sentence if the output has the input's shape."""
    if row != form.shape or form.dtype == "int32":
        return ""
    return (
        "It has the shape of a record, so the model may be an autoencoder or another that maps "
        "records to records: those have no classes. "
    )


# --- logits -------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """How logits are had from the output before its ending, and what they say in words."""

    logits: Callable[[Array], Array]
    output: Callable[[Array], Array]  # the model's own output, from the logits
    words: str


def _reading(form: _Form, head: _Head, final: Final) -> _Reading:
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
            f"{head.subject} gives one probability; its logits are {loss} it.", stacklevel=_STACK
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
            stacklevel=_STACK,
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
            stacklevel=_STACK,
        )
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
