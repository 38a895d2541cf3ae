"""Warnings as notes: what a stage had to say is kept with what it computed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def recording_warnings() -> Iterator[list[str]]:
    """Collects the texts of jaxmeter's warnings in the list; it is complete after the block.

    Others (deprecations, say, which Python shows once a process) would differ from run to run; they
    are warned of again.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    for warning in caught:
        kind = warning.category
        if kind is UserWarning or kind.__module__.startswith("jaxmeter."):
            notes.append(str(warning.message))
        else:
            warnings.warn(warning.message, kind, stacklevel=3)
    notes[:] = dict.fromkeys(notes)
