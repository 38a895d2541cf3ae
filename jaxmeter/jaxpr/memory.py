"""How many bytes arrays take, and how many a traced program has alive at once."""

import math
from collections.abc import Iterable
from typing import Any

import jax

from jaxmeter.jaxpr.equations import bodies, is_literal, variables


def peak(jaxpr: Any, of: Iterable[Any] | None = None, results: bool = True) -> int:
    """The most bytes made by a traced program that are alive at once.

    Equations that nothing depends on are left out. An inner program's own arrays live while its
    equation runs; of alternatives the largest counts.

    Args:
      jaxpr: the program.
      of: some of its arguments; only arrays that depend on them are counted. None for all arrays.
      results: whether its results are counted too.
    """
    outs = set(variables(jaxpr.outvars))
    needed, run = set(outs), []
    last_use: dict[Any, None] = {}
    for eqn in reversed(jaxpr.eqns):
        if not (eqn.effects or needed.intersection(eqn.outvars)):
            continue
        read = set(variables(eqn.invars))
        dying = {v for v in read if v not in last_use}  # a difference would look at all
        last_use |= dict.fromkeys(dying)
        needed |= read
        run.append((eqn, dying - outs))
    counted = None if of is None else set(of)
    made: set[Any] = set()
    alive = most = 0
    for eqn, dying in reversed(run):
        met = None
        if counted is not None:
            met = [not is_literal(v) and v in counted for v in eqn.invars]
            if not any(met):
                continue
            counted.update(eqn.outvars)
        kept = [v for v in eqn.outvars if results or v not in outs]
        here = sum(nbytes(v.aval) for v in kept)
        alone = outs.issuperset(eqn.outvars)  # what the inner program gives is what this one gives
        inside = max(
            (peak(b.jaxpr, _met(b.jaxpr, met), results or not alone) for b in bodies(eqn)),
            default=0,
        )
        most = max(most, alive + max(here, inside))
        alive += sum(nbytes(v.aval) for v in kept if v in needed)
        made.update(eqn.outvars)
        alive -= sum(nbytes(v.aval) for v in dying & made)
    return most


def _met(inner: Any, met: list[bool] | None) -> list[Any] | None:
    """An inner program's arguments that are counted: all, where it does not take the equation's."""
    if met is None or len(met) != len(inner.invars):
        return None
    return [v for v, is_met in zip(inner.invars, met, strict=True) if is_met]


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in a pytree."""
    return sum(nbytes(leaf) for leaf in jax.tree.leaves(tree))


def nbytes(leaf: Any) -> int:
    """Bytes of an array or of the shape of one."""
    shape, dtype = getattr(leaf, "shape", ()), getattr(leaf, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 8)  # PRNG keys and tokens: a word
    return math.prod(map(int, shape)) * itemsize


def human(n: int) -> str:
    """A number of bytes for people."""
    size = float(n)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
