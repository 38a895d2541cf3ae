"""The ONNX operators that can be evaluated, one small JAX function each.

A function takes the operator's inputs in order, NumPy arrays where they are known before the data
and JAX arrays otherwise (None for one left out), and its attributes under their ONNX names. One
that declares `opset` gets the version its node was written for; one that declares `n_outputs` the
number of outputs asked for.
"""

# ruff: noqa: F401 (the imports are the list of operators' modules)

from types import ModuleType

from jaxmeter.intake.onnx.ops import (
    activations,
    arrays,
    attention,
    casting,
    control,
    elementwise,
    indexing,
    layers,
    losses,
    matmul,
    normalization,
    pooling,
    quantisation,
    recurrent,
    reductions,
    resampling,
    sequences,
    signal,
    tensorflow,
)
from jaxmeter.intake.onnx.ops.values import Table

OPERATORS: Table = {}
for _module in [value for value in tuple(globals().values()) if isinstance(value, ModuleType)]:
    assert not OPERATORS.keys() & _module.TABLE.keys()
    OPERATORS.update(_module.TABLE)
