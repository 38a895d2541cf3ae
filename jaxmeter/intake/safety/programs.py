"""Functions of arrays, charged to the account of the file that is being opened before they run."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxmeter.intake.safety import budget
from jaxmeter.intake.safety.work import compilations, of_equation, operations
from jaxmeter.jaxpr.equations import bind, equations_in, values_of, variables
from jaxmeter.jaxpr.memory import nbytes, peak

_T = TypeVar("_T")


class CountedProgram:
    """A function traced on arrays, charged for, and not run yet."""

    def __init__(self, what: str, fun: Callable[..., Any], *args: Any):
        """Traces `fun(*args)` and charges what it will take; `what` names it in messages.

        Raises:
          TooExpensive: if it takes more than is left.
        """
        closed, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
        self._what, self._args, self._shape = what, args, shape
        self._jaxpr, self._consts = _needed(closed.jaxpr), closed.consts
        charge(what, self._jaxpr)

    def __call__(self) -> Any:
        """The result, computed equation by equation; what is read no more is given up."""
        leaves = jax.tree.leaves(self._args)
        env = dict(zip(self._jaxpr.constvars, self._consts, strict=True))
        env.update(zip(self._jaxpr.invars, leaves, strict=True))
        last = {v: i for i, eqn in enumerate(self._jaxpr.eqns) for v in variables(eqn.invars)}
        kept = set(variables(self._jaxpr.outvars))
        for i, eqn in enumerate(self._jaxpr.eqns):
            values = values_of(eqn.invars, env)
            for v, value in zip(eqn.outvars, bind(eqn, values), strict=True):
                if v in last or v in kept:
                    env[v] = value
            for v in variables(eqn.invars):
                if last[v] == i and v not in kept:
                    env.pop(v, None)
            budget.clock(self._what)
        outs = values_of(self._jaxpr.outvars, env)
        return jax.tree.unflatten(jax.tree.structure(self._shape), outs)


def computed(what: str, fun: Callable[..., _T], *args: Any) -> _T:
    """`fun(*args)`, charged for before it is computed."""
    result: _T = CountedProgram(what, fun, *args)()
    return result


def check_kept(what: str, fun: Callable[..., Any], *args: Any) -> None:
    """Refuses what keeps every array of `fun(*args)` until the last is there.

    Raises:
      TooExpensive: if they have no room beside each other.
    """
    if budget.current() is not None:
        budget.room(_made(jax.make_jaxpr(fun)(*args).jaxpr), what)


def _made(jaxpr: Any) -> int:
    return sum(sum(map(_bytes, eqn.outvars)) for eqn in equations_in(jaxpr))


def charge(what: str, jaxpr: Any, copies: int = 1) -> None:
    """Charges what a program takes, and names the largest part of it if that is too much.

    Its arrays are counted as often as `copies` says, where others are wider than JAX' are.
    """
    if budget.current() is None:
        return
    most = max(jaxpr.eqns, key=lambda e: max(map(_bytes, e.outvars), default=0), default=None)
    longest = max(jaxpr.eqns, key=of_equation, default=None)
    budget.room(copies * peak(jaxpr), f"{what}{_named(most, 'its largest array')}")
    budget.work(
        operations(jaxpr) + compilations(jaxpr), f"{what}{_named(longest, 'the longest part')}"
    )


def _named(eqn: Any, which: str) -> str:
    if eqn is None:
        return ""
    name = eqn.params.get("name") or eqn.primitive.name
    shapes = " and ".join(v.aval.str_short() for v in eqn.outvars[:2])
    return f" ({which} is {name}: {shapes})"


def _needed(jaxpr: Any) -> Any:
    """The program without equations that nothing depends on."""
    read, kept = set(variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if read.intersection(eqn.outvars):
            kept.append(eqn)
            read.update(variables(eqn.invars))
    return jaxpr.replace(eqns=kept[::-1])


def _bytes(v: Any) -> int:
    return nbytes(v.aval)
