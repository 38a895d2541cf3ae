"""Names of scalar signals, and which of them a spec asks for."""

from typing import Literal

import jax.numpy as jnp

from jaxmeter.target import Target

Scalar = Literal[
    "alignment", "mean cosine", "class distance", "input norm", "queries", "projections"
]
SCALARS: tuple[Scalar, ...] = (
    "alignment",
    "mean cosine",
    "class distance",
    "input norm",
    "queries",
    "projections",
)
COMPARE = {"alignment", "mean cosine", "class distance"}  # with what records have in common


def is_of(kind: str, name: str) -> bool:
    """Whether a scalar's name, "kind" or "kind layer", is of this kind."""
    return name == kind or name.startswith(f"{kind} ")


def names_of(target: Target, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The variables whose gradients these scalars need."""
    needing = {"alignment", "mean cosine", "projections"}
    return target.spec.variables if needing.intersection(kinds) else ()


def check(kinds: tuple[str, ...], target: Target) -> None:
    """ValueError for a kind of scalar that does not exist, or that this target does not have."""
    unknown = [kind for kind in kinds if kind not in SCALARS]
    if unknown:
        raise ValueError(f"there are no scalars {unknown}; there are {', '.join(SCALARS)}.")
    if "input norm" in kinds and not jnp.issubdtype(target.spec.input_dtype, jnp.inexact):
        raise ValueError(
            f"the target takes {target.spec.input_dtype}: whole numbers have no gradient, so there "
            "is no 'input norm'. Leave it out of the scalars."
        )
    shape = target.spec.input_shape
    if "queries" in kinds and shape and (len(shape) != 3 or 1 in shape[:2]):
        raise ValueError(
            f"records have the shape {shape}, and 'queries' mirrors and shifts images (height, "
            "width, channels). Leave it out of the scalars."
        )
