"""The walk over a traced forward pass that finds where chosen variables meet other values.

There a zero, the "tap", is added to the result, so that one backward pass with respect to all taps
gives every back-propagated error at once. A `Use` then says what the errors at its taps make the
gradient of its variables. Bodies of `lax.scan` are walked like the rest; their taps are scanned.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxmeter.gradients.rules import Derived, Use, adds, is_inexact
from jaxmeter.jaxpr.equations import (
    Body,
    Scan,
    bind,
    body_of,
    called,
    is_literal,
    scan_of,
    values_of,
    variables,
)
from jaxmeter.jaxpr.lowering import lowered
from jaxmeter.target import Outputs, Target


class Program(NamedTuple):
    """A forward pass of one record, traced."""

    body: Body
    tree: Any


def trace(target: Target, x: Array) -> Program:
    """The forward pass of one record `x`, convolutions in their fastest form."""

    def forward(params: Any, state: Any, x: Array) -> Outputs:
        return target.apply(params, state, x[None])

    args = (target.params, target.state, x)
    closed, shape = jax.make_jaxpr(lowered(forward), return_shape=True)(*args)
    return Program(body_of(closed), jax.tree.structure(shape))


def run(
    program: Program,
    target: Target,
    x: Array,
    chosen: dict[str, Array],
    taps: list[Array] | None,
) -> tuple[Outputs, list[Use], list[Array]]:
    """Evaluates the forward pass, adding `taps` (None: only lists the values to be tapped)."""
    params = {
        name: Derived.of(name, value) if name in chosen else value
        for name, value in target.params.items()
    }
    is_leaf = lambda v: isinstance(v, Derived)  # noqa: E731
    args = jax.tree.leaves((params, target.state, x), is_leaf=is_leaf)
    walk = _Walk(taps)
    outs = walk.body(program.body, args)
    return jax.tree.unflatten(program.tree, walk.copies(outs)), walk.uses, walk.tapped


class _Pending(NamedTuple):
    """A value still to be tapped: sums it goes into have the same error, so one tap does for all.

    `slots` are the places, in lists of taps, where the tap's index will be written.
    """

    value: Any
    slots: list[tuple[list[int], int]]


class _Walk:
    """One evaluation of a program: the taps that are left, the uses that were found."""

    def __init__(self, taps: Sequence[Array] | None):
        self.taps: Iterator[Array] | None = None if taps is None else iter(taps)
        self.uses: list[Use] = []
        self.tapped: list[Any] = []

    def body(self, body: Body, args: Sequence[Any]) -> list[Any]:
        jaxpr, consts = body
        used = Counter(v for eqn in jaxpr.eqns for v in variables(eqn.invars))
        used.update(variables(jaxpr.outvars))
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))

        def write(names: Sequence[Any], values: Sequence[Any]) -> None:
            for var, value in zip(names, values, strict=True):
                env[var] = value if used[var] == 1 else self.flushed(value)

        write(jaxpr.invars, args)
        for eqn in jaxpr.eqns:
            write(eqn.outvars, self.step(eqn, values_of(eqn.invars, env)))
        return values_of(jaxpr.outvars, env)

    def step(self, eqn: Any, values: list[Any]) -> list[Any]:
        derived = [v for v in values if isinstance(v, Derived)]
        if (inner := called(eqn)) is not None:  # other calls are taken as one equation
            if not any(isinstance(v, Derived | _Pending) for v in values):
                return bind(eqn, values)
            return self.body(inner, values)
        if not adds(eqn):
            values = [self.flushed(v) for v in values]
        if not derived:
            (slots, plain) = _taken(values)
            outs = bind(eqn, plain)
            return [_Pending(outs[0], slots)] if slots else outs
        if (loop := scan_of(eqn)) is not None:
            return self.scan(eqn, loop, values)
        literals = sum(map(is_literal, eqn.invars))
        if len(values) - len(derived) == literals and len(eqn.outvars) == 1:
            return [Derived.by(eqn, values)]
        return self.tap(eqn, values)

    def tap(self, eqn: Any, args: list[Any]) -> list[Any]:
        """Evaluates an equation that variables go into, and notes that its results want taps."""
        slots, plain = _taken(args)
        outs = bind(eqn, [v.value if isinstance(v, Derived) else v for v in plain])
        taps: list[int] = []
        for i, out in enumerate(outs):
            if is_inexact(out):
                own = [(taps, len(taps))]
                taps.append(-1)
                outs[i] = _Pending(out, own + slots)
        derived = {i: a.described() for i, a in enumerate(args) if isinstance(a, Derived)}
        operands = [] if adds(eqn) else [a for a in plain if not isinstance(a, Derived)]
        self.uses.append(Use(eqn, derived, operands, taps, 0))
        return outs

    def flushed(self, value: Any) -> Any:
        """The value, with its tap if it was to have one."""
        if not isinstance(value, _Pending):
            return value
        for taps, place in value.slots:
            taps[place] = len(self.tapped)
        self.tapped.append(value.value)
        return value.value if self.taps is None else value.value + next(self.taps)

    def copies(self, values: Sequence[Any]) -> list[Any]:
        """Values that are a variable's become tapped copies of them."""
        return [self.copy(v) if isinstance(v, Derived) else self.flushed(v) for v in values]

    def copy(self, derived: Derived) -> Any:
        real = jnp.issubdtype(jnp.result_type(derived.value), jnp.floating)
        if not real:
            return derived.value
        return self.flushed(self.tap(_identity_of(derived.value), [derived])[0])

    def scan(self, eqn: Any, loop: Scan, values: list[Any]) -> list[Any]:
        """Variables that all steps share meet values in the body; its taps become slices."""
        n_consts, n_carry = loop.consts, loop.carry
        split = n_consts + n_carry
        # What starts a carry, or is gone through itself, is another value at each step.
        values = [*values[:n_consts], *self.copies(values[n_consts:])]
        types = [v.aval for v in loop.body.jaxpr.invars]
        if not any(isinstance(v, Derived) for v in values):
            return bind(eqn, values)
        carry = [
            v if isinstance(v, jax.Array) else jnp.asarray(v, t.dtype)
            for v, t in zip(values[n_consts:split], types[n_consts:split], strict=True)
        ]
        found: list[Use] = []

        def body(carry: list[Any], slices: tuple[list[Any], list[Array] | None]) -> Any:
            xs, taps = slices
            walk = _Walk(taps)
            outs = walk.body(loop.body, [*values[:n_consts], *carry, *xs])
            outs = walk.copies(outs)
            found[:] = walk.uses
            operands = [use.operands for use in walk.uses]
            tapped = walk.tapped if taps is None else []
            return outs[:n_carry], (outs[n_carry:], operands, tapped)

        row = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in types[split:]]
        shapes = jax.eval_shape(lambda c, xs: body(c, (xs, None))[1][2], carry, row)
        taps = None if self.taps is None else [next(self.taps) for _ in shapes]
        end, (ys, operands, _) = lax.scan(
            body,
            carry,
            (values[split:], taps),
            length=loop.length,
            reverse=loop.reverse,
            unroll=loop.unroll,
        )
        base = len(self.tapped)
        self.tapped += [jax.ShapeDtypeStruct((loop.length, *s.shape), s.dtype) for s in shapes]
        for use, stacked in zip(found, operands, strict=True):
            indices = [base + i for i in use.taps]
            self.uses.append(use._replace(operands=stacked, taps=indices, stacks=use.stacks + 1))
        return [*end, *ys]


def _taken(values: Sequence[Any]) -> tuple[list[tuple[list[int], int]], list[Any]]:
    """The taps that values still want, and the values."""
    slots = [slot for v in values if isinstance(v, _Pending) for slot in v.slots]
    return slots, [v.value if isinstance(v, _Pending) else v for v in values]


def _identity_of(value: Array) -> Any:
    kind = jnp.finfo(value.dtype)
    closed = jax.make_jaxpr(lambda v: lax.reduce_precision(v, kind.nexp, kind.nmant))(value)
    (eqn,) = body_of(closed).jaxpr.eqns
    return eqn
