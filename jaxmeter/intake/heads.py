"""What a forward pass shows, and which part of it is audited."""

import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxmeter.jaxpr.shapes import PROBES, Leaf, Shape

# A model output's name or 1-based position, or a layer's name; then 0-based indices into a record's
# row of it.
Choice = str | int | tuple[str | int, *tuple[int, ...]]


class WrongChoice(TypeError):
    """What was given as `output` is of no form that chooses anything."""


class FinalLayer(NamedTuple):
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


class ProbeOutputs(NamedTuple):
    """One forward pass.

    Attributes:
      outputs: the model's outputs by name, in the model's order.
      layers: every layer's output by layer name, in model order.
      takes_tokens: an embedding or a gather reads the input itself, so records are integers.
    """

    outputs: dict[str, FinalLayer]
    layers: dict[str, FinalLayer]
    takes_tokens: bool


class OutputPlace(NamedTuple):
    """One array that the model computes, as tracing shows it."""

    leaf: Leaf
    ending: str | None


class Form(NamedTuple):
    """What tracing a model shows."""

    shape: Shape  # of a record
    record: tuple[int, ...]  # the same with sizes for open dimensions that the model accepts
    dtype: str
    outputs: dict[str, OutputPlace]
    layers: dict[str, OutputPlace]


class Head(NamedTuple):
    """Which array is audited, and which part of a record's row of it."""

    kind: str  # "outputs" or "layers", the field of `ProbeOutputs`
    name: str
    indices: tuple[int, ...]
    chosen: bool  # by the user

    def __str__(self) -> str:
        """ "output 'tags'[3]"."""
        part = "".join(f"[{i}]" for i in self.indices)
        return f"{self.kind[:-1]} {self.name!r}{part}"

    @property
    def subject(self) -> str:
        """What to call it in an error."""
        return str(self) if self.chosen else "the model"

    def at(self, *index: int) -> str:
        """The argument that would choose a part of it."""
        return f"output=({', '.join(map(repr, (self.name, *self.indices, *index)))})"

    def of(self, seen: ProbeOutputs) -> FinalLayer:
        """The part as `[n, units]`."""
        value, before, ending = getattr(seen, self.kind)[self.name]
        if ending == "softmax" and len(self.indices) == value.ndim - 1 and value.shape[-1] > 1:
            # One class against all others, whose log-odds are exact from the logits.
            z = before[(slice(None), *self.indices[:-1])]
            one = self.indices[-1] % z.shape[-1]
            rest = jax.nn.logsumexp(jnp.delete(z, one, axis=-1), axis=-1, keepdims=True)
            return FinalLayer(cut(value, self.indices), z[:, one : one + 1] - rest, "sigmoid")
        return FinalLayer(cut(value, self.indices), cut(before, self.indices), ending)


def cut(array: Array, index: tuple[int, ...]) -> Array:
    """The part of each row at an index; a single number as a row of one."""
    for axis, i in enumerate(index, start=1):
        size = array.shape[axis]
        if not -size <= i < size:  # JAX would clamp it and say nothing
            raise ValueError(f"index {i} is outside the {size} along axis {axis - 1} of a record.")
    part = array[(slice(None), *index)]
    return part[:, None] if part.ndim == 1 else part


def chosen_head(form: Form, output: Choice | None) -> Head:
    """What `output` means for this model."""
    names = tuple(form.outputs)
    if output is None:
        if len(names) == 1:
            return Head("outputs", names[0], (), chosen=False)
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
        return Head("outputs", name, tuple(index), chosen=True)
    if name in form.layers:
        return Head("layers", name, tuple(index), chosen=True)
    near = difflib.get_close_matches(name, [*names, *form.layers], n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"the model has neither an output nor a layer {name!r}.{hint} {_listing(form)} "
        f"Its layers: {', '.join(form.layers) or 'none'}."
    )


def _listing(form: Form) -> str:
    """The model's outputs and what each could be audited as."""
    uses = {name: _use(name, place) for name, place in form.outputs.items()}
    listing = "; ".join(
        f"{i}: {name} {_words(place)}: {uses[name] or 'no class scores'}"
        for i, (name, place) in enumerate(form.outputs.items(), start=1)
    )
    none = "" if any(uses.values()) else " None of them can be audited as a classifier."
    return f"The outputs, as one record has them, are {listing}.{none} A layer's name will do too."


def _words(place: OutputPlace) -> str:
    if place.leaf.row is None:
        return f"{place.leaf.full} for {PROBES} records"
    ending = {"linear": "linear", None: "of another kind"}.get(
        place.ending, f"after a {place.ending}"
    )
    return f"{_shown(place.leaf.row)}, {ending}"


def _shown(row: Shape) -> str:
    sizes = ["?" if d is None else str(d) for d in row]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _use(name: str, place: OutputPlace) -> str | None:
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


def check_row(form: Form, head: Head) -> None:
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


def _like_input(form: Form, row: Shape) -> str:
    """A sentence if the output has the input's shape."""
    if row != form.shape or form.dtype == "int32":
        return ""
    return (
        "It has the shape of a record, so the model may be an autoencoder or another that maps "
        "records to records: those have no classes. "
    )
