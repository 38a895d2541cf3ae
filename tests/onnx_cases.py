"""The official ONNX node tests, which of them jaxmeter claims, and the page that lists them.

`python tests/onnx_cases.py` writes docs/onnx_operators.md anew.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from onnx import numpy_helper

from jaxmeter.intake.onnx.graph import Graph, UnsupportedOperator, parse, run
from jaxmeter.intake.onnx.ops.table import OPERATORS

PAGE = Path(__file__).parents[1] / "docs" / "onnx_operators.md"

# Cases of claimed operators that are left out, and why.
LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(("equal_string", "equal_string_broadcast"), "JAX has no strings"),
    **dict.fromkeys(
        (
            "training_dropout",
            "training_dropout_default",
            "training_dropout_default_mask",
            "training_dropout_mask",
        ),
        "it is random, and no other program draws the same numbers",
    ),
}

# The inputs that an operator must know before the data: shapes, axes, counts.
STATIC_INPUTS: dict[str, tuple[int, ...]] = {
    "CenterCropPad": (1,),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "Expand": (1,),
    "NonZero": (0,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Trilu": (1,),
    "Unique": (0,),
    "Unsqueeze": (1,),
    **{
        f"Reduce{name}": (1,)
        for name in (
            *("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum"),
            "SumSquare",
        )
    },
    # of loops, windows, images and signals
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "Resize": (1, 2, 3),
    "RoiAlign": (1, 2),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "SplitToSequence": (1,),
    "Upsample": (1,),
}


# Compiling is most of the time: with little effort it is faster and no less exact.
QUICK = {"xla_backend_optimization_level": 0}


class Case(NamedTuple):
    """One node test with one set of data."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]

    @property
    def graph(self) -> Graph:
        return parse(self.model)

    @property
    def is_single(self) -> bool:
        """Whether it is one operator, and not an ONNX function written out."""
        return len(self.model.graph.node) == 1

    def static_inputs(self) -> set[str]:
        """Names of the inputs that have to be known before the data.

        In a graph of several operators (one ONNX function written out) an integer may become a
        shape a few nodes later, so that there all but floating-point inputs count as known.
        """
        names = {entry.name for entry in self.model.graph.input}
        if self.name.startswith("range_"):  # written out: its numbers give a length
            return names
        if not self.is_single:
            feeds = zip(self.model.graph.input, self.inputs, strict=True)
            return {e.name for e, value in feeds if not is_floating(value)}
        (node,) = self.model.graph.node
        found = {node.input[i] for i in STATIC_INPUTS.get(label(node), ()) if i < len(node.input)}
        return found & names

    def split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Its inputs: those that JAX traces, and those known before."""
        static = self.static_inputs()
        feeds = {
            entry.name: value
            for entry, value in zip(self.model.graph.input, self.inputs, strict=True)
            if entry.name
        }
        traced = {k: v for k, v in feeds.items() if k not in static and v is not None}
        return traced, {k: v for k, v in feeds.items() if k not in traced}


def label(node: onnx.NodeProto) -> str:
    """A node's operator as `OPERATORS` names it."""
    return f"{node.domain}.{node.op_type}" if node.domain not in {"", "ai.onnx"} else node.op_type


def is_floating(value: Any) -> bool:
    """Whether a value is, or holds, floating-point numbers."""
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(jax.dtypes.issubdtype(v.dtype, np.floating) for v in leaves)


def _value(value: Any) -> Any:
    """A test's value as arrays."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return [_value(v) for v in value]
    return None if value is None else np.asarray(value)


@cache
def all_cases() -> tuple[Any, ...]:
    """Every node test that ships with the installed onnx."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(load_model_tests(kind="node"))


@cache
def claimed() -> dict[str, Case]:
    """The cases made of claimed operators only, by name, without those left out."""
    found = {}
    for case in all_cases():
        try:
            parse(case.model)
        except UnsupportedOperator:
            continue
        name = case.name.removeprefix("test_")
        if name in LEFT_OUT:
            continue
        ((inputs, outputs),) = case.data_sets
        padded = [*inputs, *[None] * (len(case.model.graph.input) - len(inputs))]
        found[name] = Case(
            name, case.model, tuple(map(_value, padded)), tuple(map(_value, outputs))
        )
    return found


def own_case(
    op: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any] = (None,),
    opset: int = 20,
    **attributes: Any,
) -> Case:
    """A case of one operator that the official tests lack."""
    domain, _, kind = op.rpartition(".")
    values = [_value(v) for v in inputs]
    names = ["" if v is None else f"x{i}" for i, v in enumerate(values)]
    made = [f"y{i}" for i in range(len(outputs))]
    node = onnx.helper.make_node(kind, names, made, domain=domain, **attributes)
    untyped = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [untyped(name) for name in names if name], [untyped(name) for name in made]
    )
    opsets = [onnx.helper.make_opsetid(domain, 1 if domain else opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    given = tuple(v for v in values if v is not None)
    return Case(f"{op}-{opset}", model, given, tuple(outputs))


def evaluate(case: Case, traced: Mapping[str, Any], known: Mapping[str, Any]) -> list[Any]:
    """The case's outputs."""
    graph = case.graph
    return run(graph, {**traced, **known}, graph.outputs)


def counts() -> tuple[Counter[str], int]:
    """How many claimed cases each operator appears in, and how many there are in all."""
    found: Counter[str] = Counter()
    for case in claimed().values():
        found.update({label(node) for node in case.model.graph.node})
    return found, len(claimed())


def page() -> str:
    """docs/onnx_operators.md."""
    found, total = counts()
    own = sum(name.startswith("jaxmeter.") for name in OPERATORS)
    rows = [f"| {name} | {found[name]} |" for name in sorted(OPERATORS)]
    out = [f"- `{name}`: {why}" for name, why in sorted(LEFT_OUT.items())]
    return "\n".join(
        [
            "# ONNX operators",
            "",
            f"jaxmeter evaluates {len(OPERATORS) - own} ONNX operators. Of the {len(all_cases())} "
            f"official node tests of onnx {onnx.__version__} ",
            f"{total + len(LEFT_OUT)} use no other operator; {total} of them run and pass in "
            f"`tests/test_onnx_nodes.py`, {len(LEFT_OUT)} are left out:",
            "",
            *out,
            "",
            "`Constant` is read when a graph is parsed. A graph with any other operator is "
            "refused, and the message",
            "names it. Those called `jaxmeter.` are TensorFlow's, which ONNX does not have.",
            "Written by `python tests/onnx_cases.py`.",
            "",
            "| operator | tests it appears in |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def listed(text: str) -> Sequence[str]:
    """The operators that a page lists."""
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]


if __name__ == "__main__":
    text = page()
    PAGE.write_text(text)
    sys.stdout.write(f"{PAGE}: {len(listed(text))} operators\n")
