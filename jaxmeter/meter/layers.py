"""Layer numbers as ML Privacy Meter counts them, from 1, as the names that signals go by."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

from jaxmeter.intake.loading import load_target
from jaxmeter.signals.spec import ResolvedSpec, SignalSpec
from jaxmeter.target import LOGITS, Target, layer_of, resolve_variables
from jaxmeter.terminal import printable


class Numbered(NamedTuple):
    """A target and its layers as the model itself numbers them.

    Attributes:
      target: the classifier.
      layers: names of `model.layers`, in order; an input layer has a number, but no signal.
    """

    target: Target
    layers: tuple[str, ...]


def numbered(model: Any) -> Numbered:
    """A target from a live Keras model, a path, or a target.

    Layers of a live model have the numbers of its `model.layers`; others those that
    `jaxmeter inspect` shows.
    """
    target = model if isinstance(model, Target) else load_target(model)
    known = () if isinstance(model, Target | str | PathLike) else getattr(model, "layers", ())
    names = tuple(layer.name for layer in known)
    if not names:
        shape = target.spec.input_shape
        filled = None if shape is None or None in shape else target.for_inputs(shape)  # type: ignore[arg-type]
        names = (filled or target).spec.layers
    return Numbered(target, names)


def spec_of(
    model: Numbered,
    layers: Sequence[int | str] | None,
    gradients: Sequence[int | str] | None,
    *,
    loss: bool,
    label: bool,
    released: bool,
) -> ResolvedSpec:
    """The signals that these numbers (or names) ask for.

    The last layer's output is the logits; for the released network, what the layer itself gives.
    A gradient is that of all the layer's variables; for the released network, of its kernels, or of
    all its variables if there is no kernel.

    Raises:
      ValueError: for a number or name that does not exist, listing those that do with their names;
        or if nothing at all is exploited.
    """
    outputs = [_output(model, number, released) for number in layers or ()]
    variables = resolve_variables(model.target.spec, tuple(gradients)) if gradients else ()
    if released:
        variables = _kernels(model.target, variables)
    spec = SignalSpec(outputs=tuple(outputs), gradients=variables, loss=loss, label=label)
    try:
        return spec.resolved(model.target)
    except ValueError as error:
        if outputs or variables or loss or label:
            raise
        raise ValueError(
            "nothing is exploited: name layers_to_exploit or gradients_to_exploit, or leave "
            "exploit_loss or exploit_label on."
        ) from error


def counterparts(model: Numbered, other: Numbered, spec: ResolvedSpec) -> dict[str, str]:
    """Name in `spec`, of `model` -> the other model's name of the same output or variable.

    The last layer's counterpart is the last layer, whatever their numbers; other layers go by name
    where both have it, else by number.

    Raises:
      ValueError: if the other model has none, or one of another shape: an attack fitted on one
        architecture reads of another what both have, their outputs, loss and label.
    """
    found = {}
    for name in spec.outputs:
        found[name] = name if name == LOGITS else _same_layer(model, other, name)
    for variable in spec.gradients:
        owner = layer_of(variable)
        layer = owner
        if owner not in other.target.spec.trainable_layers:
            mine, theirs = (m.target.spec.trainable_layers for m in (model, other))
            place = mine.index(owner)
            layer = theirs[place] if len(theirs) == len(mine) else owner
        named = f"{layer}/{variable.rpartition('/')[2]}" if "/" in variable else layer
        wanted, there = model.target.params[variable], other.target.params.get(named)
        if there is None or there.shape != wanted.shape:
            what = "nothing of that name" if there is None else f"{printable(named)} {there.shape}"
            raise ValueError(
                f"the attack reads the gradients of {printable(variable)} {wanted.shape}, but the "
                f"target that it is tested on has {what}. Across architectures use a black box: "
                "gradients_to_exploit=None and the last layer alone in layers_to_exploit."
            )
        found[variable] = named
    return found


def _output(model: Numbered, number: int | str, released: bool) -> str:
    listing = ", ".join(f"{i}: {printable(name)}" for i, name in enumerate(model.layers, start=1))
    if number == LOGITS:
        return LOGITS
    if isinstance(number, int) and not isinstance(number, bool):
        if not 1 <= number <= len(model.layers):
            raise ValueError(
                f"there is no layer number {number}; numbers count model.layers from 1: {listing}."
            )
        name = model.layers[number - 1]
    else:
        name = str(number)
    has_output = model.target.spec.layers
    if name not in has_output:
        what = "gives no signal (it is an input, or a part)" if name in model.layers else "is none"
        raise ValueError(f"layer {number!r} {what}; the layers are {listing}.")
    return name if released or name != _last(model) else LOGITS


def _last(model: Numbered) -> str:
    return [name for name in model.layers if name in model.target.spec.layers][-1]


def _same_layer(model: Numbered, other: Numbered, name: str) -> str:
    if name == _last(model):
        return _last(other)
    if name in other.target.spec.layers:
        return name
    place = model.layers.index(name) if name in model.layers else len(other.layers)
    if place >= len(other.layers) or other.layers[place] not in other.target.spec.layers:
        raise ValueError(
            f"the attack reads the output of {printable(name)}, layer {place + 1}, which the "
            "target it is tested on does not have. Across architectures use a black box: the last "
            "layer alone."
        )
    return other.layers[place]


def _kernels(target: Target, variables: Sequence[str]) -> tuple[str, ...]:
    """Of each layer its arrays with two axes or more; all of its variables if it has none."""
    by_layer: dict[str, list[str]] = {}
    for name in variables:
        by_layer.setdefault(layer_of(name), []).append(name)
    kept = []
    for names in by_layer.values():
        kept += [name for name in names if target.params[name].ndim > 1] or names
    return tuple(kept)
