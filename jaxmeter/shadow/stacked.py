"""Stacked targets: many models of one kind, in arrays with a leading axis of models."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxmeter.target import Target


def count(references: Target) -> int:
    """How many models are stacked.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": np.ones((3, 2), np.float32)})
    >>> count(stack([net, net]))
    2
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((references.params, references.state))}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            "this is no stack of models: its arrays have no common leading axis. Stack targets "
            "with jaxmeter.shadow.stack([...])."
        )
    return int(sizes.pop()[0])


def model(references: Target, index: Any) -> Target:
    """One of the models, by its number, or a stack of some of them, by a mask, slice or numbers.

    >>> from jaxmeter import from_function
    >>> net = from_function(lambda p, s, x: x @ p["w"], {"w": np.ones((3, 2), np.float32)})
    >>> model(stack([net, net]), 1).params["w"].shape
    (3, 2)
    """
    k = count(references)
    chosen = index if isinstance(index, int | slice) else np.asarray(index)
    if isinstance(chosen, int) and not -k <= chosen < k:
        raise IndexError(f"there is no model {index} among {k}.")
    if isinstance(chosen, np.ndarray) and chosen.dtype == bool and chosen.shape != (k,):
        raise IndexError(f"a mask of shape {chosen.shape} does not choose among {k} models.")
    params, state = jax.tree.map(
        lambda leaf: np.asarray(leaf)[chosen], (references.params, references.state)
    )
    return references.replace(params=params, state=state)  # type: ignore[attr-defined]


def stack(targets: Sequence[Target]) -> Target:
    """Several targets of one architecture as one, e.g. models that were trained elsewhere.

    What they compute is taken from the first, so all must have been made the same way.

    Raises:
      ValueError: if there are none, or they differ in variables, their shapes, or kind of record.
    """
    if not targets:
        raise ValueError("there are no targets to stack.")
    first = targets[0]
    shapes = jax.tree.map(np.shape, (first.params, first.state))
    for i, other in enumerate(targets):
        same = all(
            getattr(other.spec, name) in (getattr(first.spec, name), None)
            for name in ("input_shape", "n_classes", "variables", "input_dtype")
        )
        if not same or jax.tree.map(np.shape, (other.params, other.state)) != shapes:
            raise ValueError(
                f"target {i} is not of the same architecture as target 0: variables "
                f"{other.spec.variables} and {first.spec.variables}, records "
                f"{other.spec.input_shape} and {first.spec.input_shape}, or their shapes. Only "
                "models of one kind can be stacked; name layers alike when they are made."
            )
    params, state = jax.tree.map(
        lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]),
        *((target.params, target.state) for target in targets),
    )
    return first.replace(params=params, state=state)  # type: ignore[attr-defined]


def finite(references: Target) -> NDArray[np.bool_]:
    """Which of the models have finite variables only, bool `[k]`."""
    good = np.ones(count(references), bool)
    for leaf in jax.tree.leaves((references.params, references.state)):
        values = np.asarray(leaf)
        if np.issubdtype(values.dtype, np.inexact):
            good &= np.isfinite(values).reshape(len(good), -1).all(axis=1)
    return good
