"""Names that are met twice."""

from collections.abc import Iterable
from typing import Any


class Names:
    """Hands out names, each once, in time that does not grow with how many there are."""

    def __init__(self) -> None:
        """None is taken yet."""
        self._next: dict[str, int] = {}  # a name that is taken -> the number to try next

    def free(self, name: str) -> str:
        """`name`, or the first of `name_2`, `name_3`, ... that is not taken; it is taken now."""
        candidate, count = name, self._next.get(name, 1)
        while candidate in self._next:
            count += 1
            candidate = f"{name}_{count}"
        self._next[name] = count
        self._next.setdefault(candidate, 1)
        return candidate


def unique(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """By name; a thing met again keeps its first name, a name met again gets a number."""
    names, found = Names(), {}
    known: set[int] = set()
    for name, value in named:
        if id(value) not in known:
            known.add(id(value))
            found[names.free(name)] = value
    return found
