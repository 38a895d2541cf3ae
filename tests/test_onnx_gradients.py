"""Reverse-mode gradients of the ONNX operators against central differences in 64 bits.

The data come from the official node tests, moved a little at random so that no input lies on a
kink. Each gradient is taken under jit and vmap, as audits take them.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx_cases import OPERATORS, QUICK, Case, claimed, evaluate, label, own_case

# Operators without a gradient, and why.
NO_GRADIENT: dict[str, str] = {
    **dict.fromkeys(
        (
            *("And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN"),
            *("Less", "LessOrEqual", "MatMulInteger", "NonZero", "Not", "Or", "Shape", "Size"),
            *("Unique", "Xor", "ConvInteger", "SequenceLength"),
        ),
        "whole numbers or truth values come out",
    ),
    **dict.fromkeys(
        ("BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        "it works on bits",
    ),
    **dict.fromkeys(("jaxmeter.Bucketize", "jaxmeter.Rint"), "it has steps"),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QuantizeLinear"), "a narrow type comes out"),
    **dict.fromkeys(
        (
            *("BlackmanWindow", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow"),
            *("MelWeightMatrix", "Range", "SequenceEmpty"),
        ),
        "its result is known before the data",
    ),
}

# Cases without one, by the start of their names.
NO_GRADIENT_CASES: dict[str, str] = {
    "attention_24_qk_matmul_output_mode3_softmax_precision": "the softmax is in 32 bits",
    "maxpool_3d_default": "with so many windows one lies on a kink",
    "mod_float_edge_cases": "jumps, infinities and division by zero",
    "reduce_log_sum_empty_set": "the logarithm of nothing",
    "reduce_log_sum_exp_empty_set": "the logarithm of nothing",
    "reduce_max_empty_set": "the largest of nothing",
    "reduce_min_empty_set": "the smallest of nothing",
}
# Where their result stays in 64 bits, so that differences can be measured.
CASTS = {"Cast", "CastLike"}

# Operators of which the official tests have no case with numbers that have a gradient.
IF = """<ir_version: 8, opset_import: ["": 20]>
g (bool choice, double[3, 4] x) => (double[3, 4] y) {
  y = If (choice) <
    then_branch = a () => (double[3, 4] u) { u = Sin (x) },
    else_branch = b () => (double[3, 4] v) { v = Exp (x) }
  >
}"""
ONES = np.ones((3, 4))
POSITIVE = ("Expm1", "Log1p", "Lgamma", "Digamma")
OWN = {
    label(case.model.graph.node[0]): case
    for case in (
        own_case("ConcatFromSequence", [[ONES, ONES]], axis=1),
        own_case("GlobalLpPool", [np.ones((2, 3, 4, 5))], p=3),
        Case("If", onnx.parser.parse_model(IF), (np.bool_(False), ONES), (None,)),
        own_case("SequenceAt", [[ONES, ONES], np.int64(-1)]),
        own_case("SequenceConstruct", [ONES, ONES]),
        own_case("SequenceErase", [[ONES, ONES], np.int64(0)]),
        own_case("SequenceInsert", [[ONES, ONES], ONES, np.int64(1)]),
        own_case("Trilu", [ONES, np.int64(1)], upper=0),
        own_case("jaxmeter.Erfc", [np.linspace(-3, 3, 7)]),
        own_case("jaxmeter.Erfinv", [np.linspace(-0.9, 0.9, 7)]),
        *(own_case(f"jaxmeter.{op}", [np.linspace(0.5, 3, 7)]) for op in POSITIVE),
        *(
            own_case(f"jaxmeter.{op}", [np.linspace(0.5, 3, 7), np.linspace(2, 0.1, 7)])
            for op in ("Xlogy", "Xlog1py")
        ),
    )
}

# Of operators with many cases (attention has 92), so many evenly among them.
MOST = 8

# Where an operator is defined: its inputs are moved there first.
DOMAIN = {"Acosh": lambda x: x + 0.1, "Asin": lambda x: 0.9 * x}


def differentiable(value: Any) -> bool:
    """Whether a value is made of numbers that the test may widen to 64 bits."""
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(v.dtype.kind in "fV" and v.dtype.itemsize >= 2 for v in leaves)


@cache
def gradient_cases() -> dict[str, str]:
    """Names of the cases of one operator that maps numbers to numbers, with the operator."""
    found: dict[str, list[str]] = {}
    for name, case in claimed().items():
        nodes = case.model.graph.node
        traced, _ = case.split()
        if (
            len(nodes) == 1
            and label(nodes[0]) not in NO_GRADIENT
            and not any(name.startswith(start) for start in NO_GRADIENT_CASES)
            and any(differentiable(v) for v in traced.values())
            and any(differentiable(v) for v in case.outputs)
            and (label(nodes[0]) not in CASTS or case.outputs[0].dtype == np.float64)
        ):
            found.setdefault(label(nodes[0]), []).append(name)
    spread = {op: names[:: -(-len(names) // MOST)] for op, names in found.items()}
    return {name: op for op, names in spread.items() for name in names}


def test_every_operator_has_a_gradient_or_a_reason():
    assert set(OPERATORS) - set(gradient_cases().values()) - set(OWN) == set(NO_GRADIENT)


@pytest.mark.parametrize("name", sorted(gradient_cases()))
def test_gradient(name: str):
    check(claimed()[name])


@pytest.mark.parametrize("name", sorted(OWN))
def test_gradient_of_an_own_case(name: str):
    check(OWN[name])


KINKED = (
    *("Abs", "Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax"),
    *("Mish", "ReduceL2", "ReduceLogSumExp", "Relu", "Selu", "Shrink", "Sigmoid", "Softmax"),
    *("Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
)


@pytest.mark.parametrize("op", KINKED)
def test_gradients_are_finite_at_kinks_and_far_out(op: str):
    case = own_case(op, [np.zeros(3, np.float32)])
    for value in (0.0, 1e-30, 1e30, -1e30, 100.0, -100.0):
        x = np.full(3, value, np.float32)
        slope = jax.grad(lambda x: jnp.sum(evaluate(case, {"x0": x}, {})[0][0]))(jnp.asarray(x))
        assert np.all(np.isfinite(slope)), value


def check(case: Case) -> None:
    """Compares the gradient's slopes with differences."""
    with jax.enable_x64(True):
        traced, known = case.split()
        numbers = {k: v for k, v in traced.items() if differentiable(v)}
        known |= {k: jax.tree.map(jnp.asarray, v) for k, v in traced.items() if k not in numbers}
        difference, product, scale = slopes(case, numbers, known)
        assert np.all(np.isfinite(product))
        np.testing.assert_allclose(product, difference, rtol=1e-5, atol=1e-7 * (1 + scale))


def slopes(
    case: Case, numbers: Mapping[str, Any], known: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Slopes of a random sum of the outputs in random directions: measured, and by the gradient."""
    random = np.random.default_rng(0)
    domain = DOMAIN.get(label(case.model.graph.node[0]), lambda x: x)

    def moved(v: np.ndarray) -> np.ndarray:
        v = domain(np.nan_to_num(v.astype(np.float64), nan=0.5, posinf=1, neginf=-1))
        return np.stack([v + 0.01 * random.uniform(0.1, 1, v.shape) for _ in range(2)])

    def direction(v: np.ndarray) -> np.ndarray:
        return random.normal(size=v.shape)

    def total(numbers: Any) -> jax.Array:
        outputs = jax.tree.leaves(evaluate(case, numbers, known))
        weights = np.random.default_rng(1)
        return sum(
            jnp.sum(jnp.where(jnp.isfinite(v), weights.normal(size=v.shape) * v, 0))
            for v in outputs
            if v.dtype == jnp.float64
        )

    step = 1e-6
    x = jax.tree.map(moved, dict(numbers))
    along = jax.tree.map(direction, x)
    # One program for all points: compiling is most of the time.
    points = jax.tree.map(lambda a, b: np.concatenate([a, a + step * b, a - step * b]), x, along)
    compute = jax.jit(jax.vmap(jax.value_and_grad(total)), compiler_options=QUICK)
    values, gradients = jax.device_get(compute(points))
    pairs = [(g[:2], b) for g, b in zip(*map(jax.tree.leaves, (gradients, along)), strict=True)]
    products = sum(np.sum(g * b, axis=tuple(range(1, b.ndim))) for g, b in pairs)
    scale = max(np.max(np.abs(v), initial=0) for v in (values, *(g for g, _ in pairs)))
    return (values[2:4] - values[4:]) / (2 * step), products, float(scale)
