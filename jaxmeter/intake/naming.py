"""Names that are met twice."""

from collections.abc import Container, Iterable
from typing import Any


def unique(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """By name; a thing met again keeps its first name, a name met again gets a number."""
    found: dict[str, Any] = {}
    known: set[int] = set()
    for name, value in named:
        if id(value) not in known:
            known.add(id(value))
            found[free(name, found)] = value
    return found


def free(name: str, taken: Container[str]) -> str:
    """`name`, or the first of `name_2`, `name_3`, ... that is not taken."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
