"""Equations of traced programs: what they say, and their evaluation one by one.

JAX promises nothing about the parameters of an equation, and its releases rename and reshape them.
This is the only place where the package reads them, so the only one to mend for a new release;
`tests/test_equations.py` has one test a primitive that says what has changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Calls that are differentiated as their body is; JAX 0.12 has no `closed_call` any more.
CALLS = frozenset({"jit", "remat2", "closed_call", "eval_jaxpr"})
LOOPS = frozenset({"scan", "while"})

# Some releases have one type for both.
_PROGRAM = (core.Jaxpr, core.ClosedJaxpr)


class Body(NamedTuple):
    """A program that takes values for `jaxpr.invars`, and has those of `jaxpr.constvars`."""

    jaxpr: Any
    consts: Sequence[Any]


def body_of(program: Any) -> Body:
    """A program as `jax.make_jaxpr` or an equation has it, with constants or without."""
    return Body(getattr(program, "jaxpr", program), getattr(program, "consts", ()))


_UNNAMED = body_of(jax.make_jaxpr(lambda: ())()).jaxpr.debug_info.with_unknown_names()


def as_function(body: Body) -> Callable[..., list[Any]]:
    """The program as a function of its arguments."""
    return core.jaxpr_as_fun(core.ClosedJaxpr(body.jaxpr, body.consts))


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluates one equation, as a one-line jaxpr: whatever primitive it is, JAX knows how."""
    invars = list(dict.fromkeys(variables(eqn.invars)))
    if len(invars) != len(eqn.invars):
        by_var = {
            v: value for v, value in zip(eqn.invars, values, strict=True) if not is_literal(v)
        }
        values = [by_var[v] for v in invars]
    one = core.Jaxpr((), invars, eqn.outvars, [eqn], eqn.effects, debug_info=_UNNAMED)
    return list(as_function(Body(one, ()))(*values))


def is_literal(atom: Any) -> bool:
    """Whether an equation's argument, or a program's result, is a number written into it."""
    return isinstance(atom, core.Literal)


def variables(atoms: Sequence[Any]) -> list[Any]:
    """Those of an equation's arguments that are no literals."""
    return [v for v in atoms if not is_literal(v)]


def values_of(atoms: Sequence[Any], env: Mapping[Any, Any]) -> list[Any]:
    """The values of literals and, from `env`, of variables."""
    return [v.val if isinstance(v, core.Literal) else env[v] for v in atoms]


# --- programs inside an equation ----------------------------------------------------------------


def bodies(eqn: Any) -> list[Body]:
    """The programs inside an equation: of a call, a loop's body, the branches of a condition."""
    return [body_of(value) for value in _flat(eqn.params.values()) if isinstance(value, _PROGRAM)]


def equations_in(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program and of the programs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for body in bodies(eqn):
            yield from equations_in(body.jaxpr)


def called(eqn: Any) -> Body | None:
    """What an equation calls, if the call is differentiated as its body is."""
    if eqn.primitive.name not in CALLS:
        return None
    found = bodies(eqn)
    if len(found) != 1:
        raise _unknown(eqn, f"with {len(found)} programs inside in place of the one that it calls")
    return found[0]


def with_bodies(eqn: Any, rewrite: Callable[[Body], Callable[..., Any] | None]) -> Any:
    """The equation with other programs inside, equal to its own.

    Args:
      eqn: the equation.
      rewrite: takes a program and gives a function of the same arguments; None leaves the program.
    """

    def rewritten(value: Any) -> Any:
        if isinstance(value, tuple):
            items = [rewritten(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if not isinstance(value, _PROGRAM):
            return value
        body = body_of(value)
        fun = None if body.jaxpr.constvars and not body.consts else rewrite(body)
        if fun is None:
            return value
        types: list[Any] = [v.aval for v in body.jaxpr.invars]
        avals = [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak_type) for t in types]
        new = jax.make_jaxpr(fun)(*avals)
        if new.consts and not body.consts:
            return value  # not every primitive takes a program with constants
        return new if isinstance(value, core.ClosedJaxpr) else new.jaxpr

    return eqn.replace(params={key: rewritten(value) for key, value in eqn.params.items()})


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, tuple | list) else (value,)


# --- loops --------------------------------------------------------------------------------------


class Scan(NamedTuple):
    """A `lax.scan` over `length` steps.

    The body takes `consts` values that all steps share, then `carry` values from the step before,
    then slices; it gives `carry` values and slices.
    """

    body: Body
    consts: int
    carry: int
    length: int
    reverse: bool
    unroll: int


def scan_of(eqn: Any) -> Scan | None:
    """What an equation scans; None for one that is no scan.

    Which values are sliced is seen from their types, each release writes their numbers another way.
    """
    if eqn.primitive.name != "scan":
        return None
    body = body_of(_parameter(eqn, "jaxpr"))
    sliced, stacked = (
        [_rank(outer) - _rank(inner) for outer, inner in zip(outers, inners, strict=True)]
        for outers, inners in ((eqn.invars, body.jaxpr.invars), (eqn.outvars, body.jaxpr.outvars))
    )
    xs, carry = sum(sliced), stacked.count(0)
    consts = len(sliced) - carry - xs
    whole = [0] * (consts + carry) + [1] * xs, [0] * carry + [1] * (len(stacked) - carry)
    if consts < 0 or (sliced, stacked) != whole:
        raise _unknown(eqn, "with its constants, carry and slices in another order")
    return Scan(
        body,
        consts,
        carry,
        *(_parameter(eqn, name) for name in ("length", "reverse", "unroll")),
    )


def _rank(atom: Any) -> int:
    return len(getattr(atom.aval, "shape", ()))


# --- matrix products, convolutions, windows -----------------------------------------------------


class Product(NamedTuple):
    """A `lax.dot_general`: axes of each operand that are summed over, that both share, and how."""

    contracting: tuple[Sequence[int], Sequence[int]]
    batch: tuple[Sequence[int], Sequence[int]]
    precision: Any


def product_of(eqn: Any) -> Product:
    """What a `dot_general` multiplies; of two precisions the left operand's."""
    contracting, batch = _parameter(eqn, "dimension_numbers")
    precision = _parameter(eqn, "precision")
    return Product(contracting, batch, precision[0] if isinstance(precision, tuple) else precision)


class Convolution(NamedTuple):
    """A `lax.conv_general_dilated`, by the names of its arguments.

    Attributes:
      lhs_spec: the image's axes, batch, channels and then the spatial ones.
      rhs_spec: the kernel's axes, features, channels and then the spatial ones.
      out_spec: the result's axes, as the image's.
      is_plain: whether it has no batch groups and leaves the result's sharding to the compiler.
    """

    lhs_spec: tuple[int, ...]
    rhs_spec: tuple[int, ...]
    out_spec: tuple[int, ...]
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: Any
    preferred_element_type: Any
    is_plain: bool


def convolution_of(eqn: Any) -> Convolution:
    """How a `conv_general_dilated` convolves."""
    lhs_spec, rhs_spec, out_spec = map(tuple, _parameter(eqn, "dimension_numbers"))
    return Convolution(
        lhs_spec,
        rhs_spec,
        out_spec,
        tuple(_parameter(eqn, "window_strides")),
        tuple((int(low), int(high)) for low, high in _parameter(eqn, "padding")),
        tuple(_parameter(eqn, "lhs_dilation")),
        tuple(_parameter(eqn, "rhs_dilation")),
        _parameter(eqn, "feature_group_count"),
        _parameter(eqn, "precision"),
        _parameter(eqn, "preferred_element_type"),
        _parameter(eqn, "batch_group_count") == 1 and eqn.params.get("out_sharding") is None,
    )


def with_padding(eqn: Any, image: Any, padding: Sequence[tuple[int, int]]) -> Any:
    """A convolution of another image, padded otherwise."""
    _parameter(eqn, "padding")
    return eqn.replace(
        invars=[image, eqn.invars[1]], params={**eqn.params, "padding": tuple(padding)}
    )


class Window(NamedTuple):
    """A `lax.reduce_window`, by the names of its arguments, one entry an axis."""

    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base_dilation: tuple[int, ...]
    dilation: tuple[int, ...]


def window_of(eqn: Any) -> Window:
    """Over which windows a `reduce_window_max` goes."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    return Window(*(tuple(_parameter(eqn, name)) for name in names))


# --- entries moved ------------------------------------------------------------------------------


class Pad(NamedTuple):
    """A `lax.pad` of `image` with `value`: low, high and interior padding of each axis."""

    image: Any
    value: Any
    config: tuple[tuple[int, int, int], ...]


def pad_of(eqn: Any) -> Pad | None:
    """What an equation pads and how, also one `jnp.pad` has wrapped in a jit; None for others."""
    if eqn.primitive.name == "pad":
        image, value = eqn.invars
        return Pad(image, value, _parameter(eqn, "padding_config"))
    body = called(eqn) if len(eqn.invars) == 2 else None
    if body is None or [e.primitive.name for e in body.jaxpr.eqns] != [
        "convert_element_type",
        "pad",
    ]:
        return None
    (image, value), (convert, pad) = body.jaxpr.invars, body.jaxpr.eqns
    chain = [*convert.invars, *pad.invars, *body.jaxpr.outvars]
    if chain != [value, image, *convert.outvars, *pad.outvars]:
        return None
    image, value = eqn.invars
    return Pad(image, value, _parameter(pad, "padding_config"))


def permutation_of(eqn: Any) -> tuple[int, ...]:
    """The order in which a `transpose` puts its operand's axes."""
    return tuple(_parameter(eqn, "permutation"))


class Lookup(NamedTuple):
    """A `lax.gather`: its `GatherDimensionNumbers`, slices' shape, what is out of range."""

    numbers: Any
    slice_sizes: tuple[int, ...]
    mode: Any


def lookup_of(eqn: Any) -> Lookup:
    """What a `gather` looks up."""
    return Lookup(
        _parameter(eqn, "dimension_numbers"),
        tuple(_parameter(eqn, "slice_sizes")),
        _parameter(eqn, "mode"),
    )


def wrapped_of(eqn: Any) -> Any:
    """The only equation inside a `custom_jvp_call`, if it takes the call's own arguments."""
    if eqn.primitive.name != "custom_jvp_call":
        return None
    inner = bodies(eqn)[0].jaxpr
    lone = len(inner.eqns) == 1 and list(inner.eqns[0].invars) == list(inner.invars)
    return inner.eqns[0] if lone else None


def _parameter(eqn: Any, name: str) -> Any:
    if name not in eqn.params:
        raise _unknown(eqn, f"without the parameter {name!r}")
    return eqn.params[name]


def _unknown(eqn: Any, how: str) -> Exception:
    return NotImplementedError(
        f"JAX {jax.__version__} writes {eqn.primitive.name!r} {how}, so jaxmeter cannot read this "
        "model's computation. Install a version of JAX that pip picks for jaxmeter ('pip install "
        "--upgrade jaxmeter'), or report it if this is one."
    )
