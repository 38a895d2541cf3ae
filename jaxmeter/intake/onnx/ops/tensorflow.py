"""TensorFlow's own operators that ONNX does not have and Keras' layers use.

tf2onnx leaves them in the graph under their own names; `graph` puts them into the domain
"jaxmeter".
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxmeter.intake.onnx.ops.values import Table


def bucketize(x: Any, *, boundaries: Sequence[float]) -> Array:
    """The number of boundaries that are not above `x` (Discretization)."""
    edges = jnp.asarray(boundaries, jnp.result_type(float))
    return jnp.searchsorted(edges, jnp.asarray(x, edges.dtype), side="right").astype(jnp.int32)


def xlogy(x: Any, y: Any) -> Array:
    """`x log y`, 0 where x is 0."""
    return jax.scipy.special.xlogy(x, y)


TABLE: Table = {
    "jaxmeter.Bucketize": bucketize,
    "jaxmeter.Erfinv": jax.scipy.special.erfinv,
    "jaxmeter.Expm1": jnp.expm1,
    "jaxmeter.Lgamma": jax.scipy.special.gammaln,
    "jaxmeter.Digamma": jax.scipy.special.digamma,
    "jaxmeter.Xlogy": xlogy,
    "jaxmeter.Xlog1py": jax.scipy.special.xlog1py,
    "jaxmeter.Rint": jnp.rint,
    "jaxmeter.Log1p": jnp.log1p,
}
