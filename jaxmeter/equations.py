"""Equations of traced programs, evaluated one by one."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

_UNNAMED = jax.make_jaxpr(lambda: ())().jaxpr.debug_info.with_unknown_names()


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluates one equation, as a one-line jaxpr: whatever primitive it is, JAX knows how."""
    literal = [isinstance(v, core.Literal) for v in eqn.invars]
    invars = list(dict.fromkeys(v for v, lit in zip(eqn.invars, literal, strict=True) if not lit))
    if len(invars) != len(eqn.invars) - sum(literal) or any(literal):
        by_var = {
            v: value for v, value, lit in zip(eqn.invars, values, literal, strict=True) if not lit
        }
        values = [by_var[v] for v in invars]
    one = core.Jaxpr((), invars, eqn.outvars, [eqn], eqn.effects, debug_info=_UNNAMED)
    return list(core.jaxpr_as_fun(core.ClosedJaxpr(one, ()))(*values))
