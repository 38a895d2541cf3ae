"""Forms of ONNX operators from older opsets, which the official tests no longer hold."""

import jax
import numpy as np
import pytest
from onnx_cases import Case, evaluate, own_case
from scipy import special

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
CHANNEL = np.float32([1.5, -2, 3])
MATRIX = X[:, :, 0]


def softmax(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def one_hot_max(x: np.ndarray) -> np.ndarray:
    return (np.arange(x.size) == x.argmax()).reshape(x.shape).astype(x.dtype)


def old(op: str, opset: int, inputs: list, *outputs: np.ndarray, **attributes) -> Case:
    return own_case(op, inputs, outputs, opset, **attributes)


C = CHANNEL[:, None]
BOTH = (1, 2)
CASES = [
    old("Add", 6, [X, CHANNEL], X + C, broadcast=1, axis=1),
    old("Add", 6, [X, X[0, 0]], X + X[0, 0], broadcast=1),
    old("Add", 1, [X, X], X + X, consumed_inputs=[0, 0]),
    old("Mul", 6, [X, CHANNEL], X * C, broadcast=1, axis=-2),
    old("Div", 6, [X, CHANNEL], X / C, broadcast=1, axis=1),
    old("Pow", 1, [X, np.float32([2])], X**2, broadcast=1),
    old("Greater", 1, [X, CHANNEL], X > C, broadcast=1, axis=1),
    old("Relu", 1, [X], np.maximum(X, 0), consumed_inputs=[0]),
    old("PRelu", 6, [X, CHANNEL], np.where(X < 0, C * X, X)),
    old("PRelu", 6, [X, np.float32([0.5])], np.where(X < 0, 0.5 * X, X)),
    old("Selu", 1, [X], np.where(X > 0, 1.0507 * X, 1.0507 * 1.6732 * np.expm1(X))),
    old("Clip", 6, [X], np.clip(X, -0.5, 0.25), min=-0.5, max=0.25),
    old("Clip", 1, [X], np.maximum(X, 0.125), min=0.125),
    old("Cast", 1, [X], X.astype(np.int32), to="INT32"),
    old("Cast", 6, [X], X.astype(np.float64), to=11),
    old("Softmax", 11, [X], softmax(X, BOTH)),
    old("Softmax", 11, [X], softmax(X, (0, 1, 2)), axis=0),
    old("LogSoftmax", 1, [X], np.log(softmax(X, (2,))), axis=2),
    old("Hardmax", 11, [X], np.stack([one_hot_max(x) for x in X])),
    old("Reshape", 1, [X], X.reshape(2, 12), shape=[0, -1]),
    old("Squeeze", 1, [X[:, :1]], X[:, 0], axes=[1]),
    old("Unsqueeze", 1, [X], X[None, :, :, None], axes=[0, 3]),
    old("Concat", 1, [X, X], np.concatenate([X, X], 1)),
    old("Split", 2, [X], X[:, :1], X[:, 1:], axis=1, split=[1, 2]),
    old("Split", 11, [X], X[0:1], X[1:2]),
    old("Slice", 1, [X], X[:, 1:, :-1], starts=[1, 0], ends=[2**63 - 1, -1], axes=[1, 2]),
    old("Slice", 1, [X], X[:1], starts=[0], ends=[1]),
    old("Pad", 1, [MATRIX], np.pad(MATRIX, ((0, 1), (2, 0))), paddings=[0, 2, 1, 0]),
    old("Pad", 2, [MATRIX], np.pad(MATRIX, 1, constant_values=2.5), pads=[1] * 4, value=2.5),
    old("Tile", 1, [MATRIX, np.int64([3]), np.int64([1])], np.tile(MATRIX, (1, 3))),
    old("ReduceSum", 11, [X], X.sum(1, keepdims=True), axes=[1]),
    old("ReduceMean", 13, [X], X.mean((0, 2)), axes=[0, -1], keepdims=0),
    old("ReduceMax", 1, [X], X.max(keepdims=True)),
    old("TopK", 1, [X], -np.sort(-X)[..., :2], np.argsort(-X)[..., :2], k=2),
    old("TopK", 10, [X, np.int64([1])], X.max(1, keepdims=True), X.argmax(1)[:, None], axis=1),
    old("Gemm", 6, [MATRIX, MATRIX.T, np.float32([1, 2])], MATRIX @ MATRIX.T + [1, 2], broadcast=1),
    old("Max", 6, [X, -X], np.abs(X)),
    old("Max", 1, [X, 2 * X], np.maximum(X, 2 * X), consumed_inputs=[0, 0]),
    *(
        own_case(f"jaxmeter.{op}", [v.astype(np.float32) for v in inputs], [np.float32(expected)])
        for op, inputs, expected in (
            ("Erfc", [X], special.erfc(X.astype(np.float64))),
            ("Erfinv", [np.tanh(X)], special.erfinv(np.tanh(X))),
            ("Expm1", [X], np.expm1(X)),
            ("Log1p", [np.abs(X)], np.log1p(np.abs(X))),
            ("Lgamma", [np.abs(X) + 0.5], special.gammaln(np.abs(X) + 0.5)),
            ("Digamma", [np.abs(X) + 0.5], special.digamma(np.abs(X) + 0.5)),
            ("Xlogy", [0 * X, 0 * X], 0 * X),
            ("Xlogy", [X, np.abs(X)], special.xlogy(X, np.abs(X))),
            ("Xlog1py", [X, np.abs(X)], special.xlog1py(X, np.abs(X))),
            ("Rint", [3 * X], np.rint(3 * X)),
        )
    ),
    own_case(
        "jaxmeter.Bucketize",
        [np.float32([-1, 0, 0.5, 7])],
        [np.int32([0, 1, 1, 2])],
        boundaries=[0.0, 1.0],
    ),
]


@pytest.mark.parametrize("known", [False, True], ids=["traced", "known"])
@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c.name}" for i, c in enumerate(CASES)])
def test_old_form(case: Case, known: bool):
    traced, rest = case.split()
    with jax.enable_x64(True):
        if known:
            out = evaluate(case, traced, rest)
        else:
            out = jax.jit(lambda traced: evaluate(case, traced, rest))(traced)
    assert len(out) == len(case.outputs)
    for one, expected in zip(out, case.outputs, strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
