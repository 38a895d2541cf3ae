"""Which signals are wanted, and signals as one pytree."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
from jax import Array

from jaxmeter.gradients.factors import Gradient
from jaxmeter.signals.scalars.names import Scalar, check, is_of
from jaxmeter.target import LOGITS, Target, layer_of, resolve_layers, resolve_variables


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """Which signals an attack reads. The default is a black box that sees logits, loss and label.

    Attributes:
      outputs: layers whose output is read, by name or 1-based position; "logits" is the output
        before the softmax. (A final softmax layer's own name gives probabilities, which saturate.)
      gradients: layers or variables whose per-example gradients are read; a layer stands for its
        variables. A Dense layer costs `d_in + d_out` numbers a record, not `d_in * d_out`.
      loss: whether the cross-entropy loss is read.
      label: whether the record's label is read.
      gradient_norm: the gradient's norm for every layer with trainable variables (True), for the
        named layers, or for none (False).
      scalars: numbers that mean the same under any model of a kind, for attacks that compare the
        target with reference models. "alignment": for each kernel, the cosine of the record's
        gradient, downhill, and the weights, both made white by the second moments of inputs and of
        errors (the Kronecker factors of K-FAC, Martens and Grosse 2015, arXiv:1503.05671, damped by
        a tenth of the mean eigenvalue; of more than 2,048 inputs or outputs only variances): how
        far the weights have moved the way this record would move them. "mean cosine": for each
        layer, the cosine of the record's gradient and the mean gradient. "class distance": for each
        layer with variables and the logits, minus the log of the distance to the mean output of its
        class (averaged over positions). "input norm": minus the log of the norm of the gradient of
        the log-odds with respect to the record. "queries": log-odds of an image mirrored, and
        shifted by a pixel in four directions. "projections": four random projections of the
        gradient's direction, which do depend on the order of units. The first three compare a
        record with all records that are extracted with it; nobody's membership is looked at.

    >>> SignalSpec(outputs=("dense_2",), gradients=("dense_3",)).loss
    True
    """

    outputs: tuple[str | int, ...] = (LOGITS,)
    gradients: tuple[str | int, ...] = ()
    loss: bool = True
    label: bool = True
    gradient_norm: bool | tuple[str | int, ...] = False
    scalars: tuple[Scalar, ...] = ()

    def resolved(self, target: Target) -> "ResolvedSpec":
        """The same in the target's own names, in the order given.

        Raises:
          ValueError: for a name or number the target does not have, listing those it has; or if no
            signal at all is asked for.
        """
        norms = self.gradient_norm
        normed: tuple[str, ...] = ()
        if norms is not False:
            normed = resolve_variables(target.spec, None if norms is True else norms)
        spec = ResolvedSpec(
            outputs=tuple(dict.fromkeys(resolve_layers(target.spec, self.outputs))),
            gradients=resolve_variables(target.spec, self.gradients),
            norms=tuple(dict.fromkeys(layer_of(name) for name in normed)),
            loss=self.loss,
            label=self.label,
            scalars=tuple(dict.fromkeys(self.scalars)),
        )
        check(spec.scalars, target)
        read = (spec.outputs, spec.gradients, spec.norms, spec.loss, spec.label, spec.scalars)
        if not any(read):
            raise ValueError(
                "the SignalSpec asks for no signal at all; an attack needs at least one."
            )
        return spec


@dataclass(frozen=True, kw_only=True)
class ResolvedSpec:
    """A `SignalSpec` in a target's own names: layers, variables, layers."""

    outputs: tuple[str, ...]
    gradients: tuple[str, ...]
    norms: tuple[str, ...]
    loss: bool
    label: bool
    scalars: tuple[Scalar, ...] = ()

    def resolved(self, target: Target) -> "ResolvedSpec":
        """Itself."""
        return self

    def union(self, other: "ResolvedSpec") -> "ResolvedSpec":
        """What either reads."""
        return ResolvedSpec(
            outputs=tuple(dict.fromkeys((*self.outputs, *other.outputs))),
            gradients=tuple(dict.fromkeys((*self.gradients, *other.gradients))),
            norms=tuple(dict.fromkeys((*self.norms, *other.norms))),
            loss=self.loss or other.loss,
            label=self.label or other.label,
            scalars=tuple(dict.fromkeys((*self.scalars, *other.scalars))),
        )


AnySpec = SignalSpec | ResolvedSpec


def white_box(target: Target) -> SignalSpec:
    """The standard white-box signals: last layer's gradients, logits, loss, label.

    The configuration of ML Privacy Meter's tutorial (Nasr, Shokri, Houmansadr 2019).
    """
    layers = target.spec.trainable_layers
    if not layers:
        raise ValueError(
            "the target has no trainable variables, so there are no gradients to read."
        )
    return SignalSpec(gradients=(layers[-1],))


class Signals(NamedTuple):
    """Signals of n records, a pytree of arrays with leading axis n; what was not asked is None.

    Attributes:
      outputs: `{layer name or "logits": [n, ...]}`.
      gradients: `{variable name: [n, *variable shape]}`, Dense kernels as `Outer([n, d_in],
        [n, d_out])`.
      gradient_norms: `{layer name: [n]}`.
      loss: cross-entropy `[n]`, or None.
      label: one-hot bool `[n, classes]`, or None.
      scalars: `{"kind layer": [n]}`, see `SignalSpec.scalars`.

    Outputs and gradients are bfloat16 where `extract` was asked to store them so.
    """

    outputs: dict[str, Array]
    gradients: dict[str, Gradient]
    gradient_norms: dict[str, Array]
    loss: Array | None
    label: Array | None
    scalars: dict[str, Array] = {}  # noqa: RUF012 (never changed)

    @property
    def y(self) -> Array:
        """The labels as integers `[n]`."""
        if self.label is None:
            raise ValueError(
                "these signals hold no label; extract them with SignalSpec(label=True)."
            )
        return self.label.argmax(-1)

    @property
    def logits(self) -> Array:
        """The logits `[n, classes]`."""
        if LOGITS not in self.outputs:
            raise ValueError(
                "these signals hold no logits; extract them with 'logits' among SignalSpec.outputs."
            )
        return self.outputs[LOGITS]

    def rows(self, index: Any) -> Self:
        """The signals of some records, in the order of `index` (integers, mask or slice).

        Of signals in a folder (see `signals.load`) only these rows are read.
        """
        return jax.tree.map(lambda leaf: leaf[index], self)

    def only(self, spec: ResolvedSpec) -> "Signals":
        """The part of these signals that a spec reads, dicts in the spec's order."""
        return Signals(
            outputs={name: self.outputs[name] for name in spec.outputs},
            gradients={name: self.gradients[name] for name in spec.gradients},
            gradient_norms={name: self.gradient_norms[name] for name in spec.norms},
            loss=self.loss if spec.loss else None,
            label=self.label if spec.label else None,
            scalars={
                name: value
                for kind in spec.scalars
                for name, value in self.scalars.items()
                if is_of(kind, name)
            },
        )
