"""How many operations a traced program takes.

An operation is a multiplication or an addition in a large product of matrices; what moves memory,
evaluates series or jumps is worth several. Products, convolutions and loops are counted exactly,
everything else by the sizes of arrays. Where the data decide how often a loop goes round, a number
is assumed.
"""

import math
from typing import Any

from jaxmeter.jaxpr.equations import bodies, convolution_of, product_of, scan_of, window_of

_ELEMENT = 5.0  # reading, adding and writing a number
_SERIES = 25.0  # of a sine, a logarithm, a root
_MOVED = 25.0  # to and from anywhere
_ROUNDS = 10_000  # of a loop whose end the data decide
_ROUND = 5e4  # each equation of a loop's body in each round, in whichever framework
_COMPILED = 5e7  # each equation that is compiled: 20 milliseconds
_BRANCHED = 60  # times as much of one with programs inside: these are compiled one by one
_SERIAL = {
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh"),
    *("atanh", "atan2", "exp", "exp2", "log", "log1p", "expm1", "logistic", "pow", "erf", "erfc"),
    *("erf_inv", "lgamma", "digamma", "sqrt", "rsqrt", "cbrt", "rem", "threefry2x32"),
    *("random_bits", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
}
_ITERATED = {  # with loops of their own for each number
    *("igamma", "igammac", "igamma_grad_a", "random_gamma", "random_gamma_grad", "zeta"),
    *("regularized_incomplete_beta", "polygamma", "bessel_i0e", "bessel_i1e"),
}
_CUBIC = {
    *("lu", "geqrf", "geqp3", "qr", "householder_product", "cholesky", "triangular_solve"),
    *("tridiagonal", "hessenberg", "symmetric_product"),
}
_SPECTRAL = {"svd", "eig", "eigh", "schur", "polar"}


def operations(jaxpr: Any) -> float:
    """Operations of a program, each of its equations evaluated once."""
    return sum(map(of_equation, jaxpr.eqns))


def compilations(jaxpr: Any) -> float:
    """Operations that compiling is worth, where equations are compiled one by one and kept."""
    known: set[Any] = set()
    total = 0
    for eqn in jaxpr.eqns:
        inside = sum(map(_compiled, _inside(eqn)))
        key = (
            eqn.primitive.name,
            *(str(v.aval) for v in (*eqn.invars, *eqn.outvars)),
            # Inner programs are long to write out, and known by their shapes well enough.
            "" if inside else str(sorted((k, str(v)) for k, v in eqn.params.items())),
        )
        if key not in known:
            known.add(key)
            total += 1 + inside
    return total * _COMPILED


def of_equation(eqn: Any) -> float:
    """Operations of one equation."""
    name = eqn.primitive.name
    ins, outs = [_size(v) for v in eqn.invars], [_size(v) for v in eqn.outvars]
    inner = _inside(eqn)
    if (scan := scan_of(eqn)) is not None:
        return scan.length * sum(operations(p) + _ROUND * _length(p) for p in inner)
    if name == "while":
        return _ROUNDS * sum(operations(p) + _ROUND * _length(p) for p in inner)
    if name == "cond":
        return max(map(operations, inner), default=0.0)
    if name.startswith("reduce_window") or name.startswith("select_and_"):
        window = math.prod(window_of(eqn).dimensions) if name.startswith("reduce_window") else 1
        return max(sum(ins), sum(outs) * window) * _ELEMENT
    if inner and name not in ("reduce", "scatter", "scatter-add", "scatter_add", "scatter_mul"):
        return sum(map(operations, inner))
    if name == "dot_general":
        contracted, _ = product_of(eqn).contracting
        shape = eqn.invars[0].aval.shape
        return _slow(eqn) * 2.0 * outs[0] * math.prod(shape[d] for d in contracted) + sum(ins)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[convolution_of(eqn).rhs_spec[0]]
        taps = math.prod(kernel) / max(1, outputs)
        return _slow(eqn) * 2.0 * outs[0] * taps + sum(ins)
    largest = max(sum(ins), sum(outs))
    if name in ("sort", "top_k", "approx_top_k"):
        return largest * math.log2(max(ins) + 2) * _SERIES
    if name in _SERIAL:
        return largest * _SERIES
    if name == "gather":
        return (outs[0] + ins[1]) * _MOVED
    if name.startswith("scatter"):
        return ins[0] * _ELEMENT + (ins[1] + ins[2]) * _MOVED
    if name == "fft":
        return largest * math.log2(largest + 2) * _SERIES
    if name in _CUBIC or name in _SPECTRAL:
        edge = max((d for v in eqn.invars for d in getattr(v.aval, "shape", ())[-2:]), default=1)
        return largest * edge * (100.0 if name in _SPECTRAL else 10.0)
    return largest * (1000.0 if name in _ITERATED else _ELEMENT)


def _slow(eqn: Any) -> float:
    """Products of anything but floats of 32 and 64 bits are not what libraries are made for."""
    return 1.0 if str(eqn.invars[0].aval.dtype) in ("float32", "float64") else 20.0


def _length(jaxpr: Any) -> int:
    """Equations, of the programs inside too."""
    return sum(1 + sum(map(_length, _inside(eqn))) for eqn in jaxpr.eqns)


def _compiled(jaxpr: Any) -> int:
    """The same, where branches and loops count for more."""
    total = 0
    for eqn in jaxpr.eqns:
        inside = _inside(eqn)
        is_call = eqn.primitive.name not in ("cond", "scan", "while")
        total += (1 if is_call else _BRANCHED) + sum(map(_compiled, inside))
    return total


def _size(v: Any) -> int:
    return math.prod(int(d) for d in getattr(v.aval, "shape", ()))


def _inside(eqn: Any) -> list[Any]:
    return [body.jaxpr for body in bodies(eqn)]
