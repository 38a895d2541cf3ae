"""What scalar signals are made of: one record under a target, and what it is compared with."""

from typing import Any, NamedTuple

from jax import Array

from jaxmeter.gradients.factors import Term
from jaxmeter.target import Outputs, Target

TINY = 1e-30  # below it a length is none


class Whitening(NamedTuple):
    """Of one kernel: what makes the factors of its gradients white, and its weights in those terms.

    Attributes:
      left: for its inputs, `[B, d_in, d_in]`, or `[B, d_in]` where it is diagonal.
      right: for the errors at its outputs, `[B, d_out, d_out]` or `[B, d_out]`.
      weights: the kernel, whitened, of length 1; `[B, d_in, d_out]`.
    """

    left: Any
    right: Any
    weights: Any


class Context(NamedTuple):
    """What records have in common under one target; empty where nothing is compared with it.

    Attributes:
      whitening: by kernel.
      mean: the mean gradient by variable, of length 1 a layer, in the form of `_formed`.
      centres: mean outputs of each class by layer, `[classes, d]`.
    """

    whitening: dict[str, Whitening]
    mean: dict[str, Array]
    centres: dict[str, Array]


NOTHING = Context({}, {}, {})


def pooled(value: Array) -> Array:
    """Channels `[d]`, averaged over positions."""
    return value.mean(axis=tuple(range(value.ndim - 1)))


class OneRecord(NamedTuple):
    """One record under a target.

    Attributes:
      target: the target.
      x: the record's input.
      y: its label.
      out: what the target answers.
      terms: its gradients by variable, of those that the kinds asked for need.
      context: what records have in common, for kinds that compare.
    """

    target: Target
    x: Array
    y: Array
    out: Outputs
    terms: dict[str, Term]
    context: Context
