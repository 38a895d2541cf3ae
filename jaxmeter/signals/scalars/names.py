"""Names of scalar signals, and which of them a spec asks for."""

from typing import TYPE_CHECKING, Literal

from jaxmeter.signals.scalars.kinds import KINDS
from jaxmeter.target import Target

SCALARS = tuple(kind.name for kind in KINDS)
if TYPE_CHECKING:
    Scalar = str
else:
    Scalar = Literal[SCALARS]  # what a command line offers, and a config takes
COMPARE = {kind.name for kind in KINDS if kind.compares}  # with what records have in common


def is_of(kind: str, name: str) -> bool:
    """Whether a scalar's name, "kind" or "kind layer", is of this kind."""
    return name == kind or name.startswith(f"{kind} ")


def names_of(target: Target, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The variables whose gradients these scalars need."""
    needing = any(kind.reads_gradients and kind.name in kinds for kind in KINDS)
    return target.spec.variables if needing else ()


def check(kinds: tuple[str, ...], target: Target) -> None:
    """ValueError for a kind of scalar that does not exist, or that this target does not have."""
    unknown = [kind for kind in kinds if kind not in SCALARS]
    if unknown:
        raise ValueError(f"there are no scalars {unknown}; there are {', '.join(SCALARS)}.")
    for kind in KINDS:
        if kind.name in kinds and (why := kind.lacks(target.spec)):
            raise ValueError(f"{why}, so there is no {kind.name!r}. Leave it out of the scalars.")
