"""Products of matrices; that of two matrices is one `dot_general` of the operands themselves."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxmeter.intake.onnx.ops.values import Table, backend, cast, is_known


def matmul(a: Any, b: Any) -> Any:
    """MatMul, as NumPy's."""
    return cast(backend(a, b).matmul(a, b), a.dtype)


def gemm(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 0,
) -> Any:
    """Gemm: `alpha a b + beta c`."""
    if is_known(a, b):
        product = matmul(a.T if transA else a, b.T if transB else b)
    else:
        contracted = ((0 if transA else 1,), (1 if transB else 0,))
        product = lax.dot_general(jnp.asarray(a), jnp.asarray(b), (contracted, ((), ())))
    if alpha != 1:
        product = alpha * product
    if c is None:
        return cast(product, a.dtype)
    return cast(product + (c if beta == 1 else beta * c), a.dtype)


def einsum(*operands: Any, equation: str) -> Any:
    """Einsum."""
    return jnp.einsum(equation.replace(" ", ""), *operands)


def det(x: Any) -> Any:
    """Det, of a stack of matrices."""
    return jnp.linalg.det(x)


TABLE: Table = {"Det": det, "Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
