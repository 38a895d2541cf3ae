"""Every official ONNX node test made of claimed operators: traced under jit, and known before."""

import os
from functools import partial

import jax
import numpy as np
import onnx
import onnx_cases
import pytest
from onnx_cases import OPERATORS, QUICK, Case, claimed, evaluate

from jaxmeter.intake.onnx.graph import parse


def test_the_page_lists_what_is_claimed():
    text = onnx_cases.PAGE.read_text()
    assert list(onnx_cases.listed(text)) == sorted(OPERATORS)
    if f"onnx {onnx.__version__} " in text:
        assert text == onnx_cases.page(), "write it anew: python tests/onnx_cases.py"


def test_every_case_left_out_exists():
    names = {case.name.removeprefix("test_") for case in onnx_cases.all_cases()}
    assert names >= set(onnx_cases.LEFT_OUT)


# XLA's older code generator, which the tests use for its speed, rounds these types wrongly.
_SMALL_FLOATS = (
    {"xla_cpu_use_fusion_emitters": True}
    if "use_fusion_emitters" in os.environ["XLA_FLAGS"]
    else {}
)


@pytest.mark.parametrize("name", sorted(claimed()))
def test_traced(name: str):
    case = claimed()[name]
    traced, known = case.split()
    with jax.enable_x64(True):
        options = QUICK | (_SMALL_FLOATS if "FNUZ" in name else {})
        compute = jax.jit(lambda traced: evaluate(case, traced, known), compiler_options=options)
        out = compute(traced)
    check(case, out)


@pytest.mark.parametrize("name", sorted(claimed()))
def test_traced_in_32_bits(name: str):
    """Without the 64-bit types there is nothing to warn of; values the test above has compared."""
    case = claimed()[name]
    traced, known = case.split()
    trace = partial(jax.eval_shape, lambda traced: evaluate(case, traced, known), traced)
    if name in {"bitcast_float64_to_int64", "bitcast_int64_to_float64"}:
        with pytest.raises(ValueError, match="differ in width"):
            trace()
        return
    out = trace()
    for one, expected in zip(jax.tree.leaves(out), jax.tree.leaves(case.outputs), strict=False):
        assert one.shape == expected.shape
        assert one.dtype == jax.dtypes.canonicalize_dtype(expected.dtype)


@pytest.mark.parametrize("name", [k for k, v in sorted(claimed().items()) if v.is_single])
def test_known(name: str):
    case = claimed()[name]
    traced, known = case.split()
    with jax.enable_x64(True):
        out = evaluate(case, traced, known)
    check(case, out)


def check(case: Case, outputs: list) -> None:
    """Compares dtypes, shapes and values."""
    assert len(outputs) == len(case.outputs)
    for output, expected in zip(outputs, case.outputs, strict=True):
        if expected is None:
            continue
        if isinstance(expected, list):
            assert len(output) == len(expected)
        got, wanted = jax.tree.leaves(output), jax.tree.leaves(expected)
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            compare(np.asarray(one), other, case.name)


def compare(output: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Equal where numbers are whole, and near at the numbers' own precision otherwise."""
    if not jax.dtypes.issubdtype(expected.dtype, np.floating):
        np.testing.assert_array_equal(output, expected)
        return
    rtol, atol = _TOLERANCES.get(expected.dtype.name, (1e-3, 1e-7))
    if name in _ROUNDED:
        rtol, atol = 1e-3, 1e-7
    np.testing.assert_allclose(
        output.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol
    )


# The official runner takes 1e-3 and 1e-7, and for bfloat16 two of its last places.
_TOLERANCES = {
    "float32": (1e-5, 1e-6),
    "float64": (1e-5, 1e-6),
    "bfloat16": (2**-6, 1e-7),
}


# Cases whose expected numbers are written with four digits.
_ROUNDED = {
    "averagepool_2d_ceil_last_window_starts_on_pad",
    "gridsample_bicubic",
    "roialign_aligned_false",
    "roialign_aligned_true",
}


def test_unknown_operators_are_named():
    node = onnx.helper.make_node("Bernoulli", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [2])], [value("y", 1, [2])])
    with pytest.raises(ValueError, match="does not know: Bernoulli"):
        parse(onnx.helper.make_model(graph))
