"""`.onnx` files as targets: their initialisers are the weights.

Floating-point initialisers that a layer could have learned are `params`, named by the file where
its names say something ("fc1.weight" becomes "fc1/weight") and by the node that reads them where
they do not ("Gemm_1/weight"). BatchNorm's moments are `state`; integers, shapes, scalars and what
operators take as settings (bounds of a `Clip`, scales of a `Resize`) are constants.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from onnx import external_data_helper

from jaxmeter.intake.naming import Names
from jaxmeter.intake.onnx.graph import Graph, Node, inlined, parse, pruned, reads, run
from jaxmeter.intake.onnx.target import (
    Binding,
    from_graph,
    layers_of,
    node_labels,
    plain_name,
    scope_of,
)
from jaxmeter.intake.safety import programs
from jaxmeter.intake.safety.external import check_external
from jaxmeter.jaxpr.shapes import TooExpensive
from jaxmeter.target import Source, Target, layer_of

# What an operator's inputs are called, by position; None: a setting, never learned.
_ROLES: dict[str, tuple[str | None, ...]] = {
    "Conv": ("input", "weight", "bias"),
    "ConvTranspose": ("input", "weight", "bias"),
    "Gemm": ("input", "weight", "bias"),
    "MatMul": ("weight", "weight"),
    "Add": ("bias", "bias"),
    "Mul": ("scale", "scale"),
    "Gather": ("embeddings", None),
    "PRelu": ("input", "slope"),
    "BatchNormalization": ("input", "scale", "bias", "mean", "var"),
    "InstanceNormalization": ("input", "scale", "bias"),
    "LayerNormalization": ("input", "scale", "bias"),
    "GroupNormalization": ("input", "scale", "bias"),
    "RMSNormalization": ("input", "scale"),
    "LSTM": ("input", "W", "R", "B", None, "initial_h", "initial_c", "P"),
    "GRU": ("input", "W", "R", "B", None, "initial_h"),
    "RNN": ("input", "W", "R", "B", None, "initial_h"),
    "Attention": ("input", "input", "input", None, None, None, None),
    "Clip": ("input", None, None),
    "Pad": ("input", None, None, None),
    "Pow": ("base", None),
    "Dropout": ("input", None, None),
    "Resize": ("input", None, None, None),
    "Upsample": ("input", None),
    "OneHot": (None, None, None),
    "Range": (None, None, None),
    "QuantizeLinear": ("input", None, None),
    "DequantizeLinear": (None, None, None),
    "QLinearConv": (None,) * 9,
    "QLinearMatMul": (None,) * 8,
}
_MOMENTS = {("BatchNormalization", 3), ("BatchNormalization", 4)}
_HAND_ON = {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}
# Operations that TensorFlow names a variable's reader by.
_TF_OPERATIONS = {"MatMul", "BiasAdd", "Conv2D", "Tensordot", "depthwise", "add", "mul", "concat"}
# Nothing in it can match one text in two ways, so that long names take no longer than they are.
_ANONYMOUS = re.compile(
    r"(onnx::\w+|const\w*)(\.\d*)?|(val|tensor|param|input|initializer)?[_.]?\d*", re.I
)


def from_onnx(path: Path, output: Any) -> Target:
    """A target from an `.onnx` file.

    Raises:
      ValueError: if the file is damaged, keeps data outside its folder, has operators that are not
        known, or is not a classifier that can be audited.
    """
    model = inlined(_read(path))
    graph = parse(model)
    x, shape, dtype, batch = _input(model, graph, path)
    names, moments = _variables(graph)
    values = {value: graph.constants[value] for value in names}
    bare = replace(graph, constants={k: v for k, v in graph.constants.items() if k not in names})
    owners = {value: layer_of(name) for value, name in names.items()}
    binding = Binding(
        x=x,
        params={name: value for value, name in names.items() if value not in moments},
        state={name: value for value, name in names.items() if value in moments},
        outputs={
            plain_name(value) or f"output_{i}": value for i, value in enumerate(graph.outputs, 1)
        },
        layers=layers_of(bare, x, owners),
    )
    one_by_one = batch == 1 and not _takes_batches(bare, binding, values, shape, dtype)
    return from_graph(
        bare,
        binding,
        {name: values[value] for name, value in binding.params.items()},
        {name: values[value] for name, value in binding.state.items()},
        shape=shape,
        dtype=dtype,
        one_by_one=one_by_one,
        original=_original(model, bare, values, binding, one_by_one),
        output=output,
        source=Source(
            route="onnx",
            origin=str(path),
            versions=(
                *(((model.producer_name, model.producer_version),) if model.producer_name else ()),
                ("onnx", onnx.__version__),
                ("jax", jax.__version__),
            ),
        ),
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # the parser's own errors differ with protobuf's implementation
        raise ValueError(
            f"{path} is damaged or no ONNX model: {_line(error)}. Copy or export it again."
        ) from error
    if not model.graph.node:
        raise ValueError(f"{path} is damaged or no ONNX model: it has no graph. Export it again.")
    outside = [t for t in _tensors(model) if external_data_helper.uses_external_data(t)]
    if outside:
        check_external(outside, path)
        try:
            for tensor in outside:
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
        except Exception as error:
            raise ValueError(
                f"{path} keeps {len(outside)} arrays in other files, which cannot be read: "
                f"{_line(error)}. Put the files that were exported with it beside it."
            ) from error
    return model


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every array in a model: also those in attributes, functions and sparse tensors."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if isinstance(value, Iterable) else [value]:
                yield from _tensors(item)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


# --- what goes in -------------------------------------------------------------------------------


def _input(
    model: onnx.ModelProto, graph: Graph, path: Path
) -> tuple[str, tuple[int | None, ...], str, int | None]:
    """The name of the input that takes records, a record's shape, its dtype, and a fixed batch."""
    if len(graph.inputs) != 1:
        raise ValueError(
            f"{path} has {len(graph.inputs)} inputs ({', '.join(graph.inputs) or 'none'}); a "
            "record here is one array. Wrap it in a function that takes one array apart and use "
            "jaxmeter.from_function."
        )
    (name,) = graph.inputs
    (info,) = (value.type for value in model.graph.input if value.name == name)
    tensor = info.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, ValueError, TypeError):
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise ValueError(
            f"the input {name!r} of {path} holds {dtype.name}; a record is an array of numbers. "
            "Export the model without its text processing."
        )
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise ValueError(
            f"the input {name!r} of {path} has no shape with a batch axis. Export the model with "
            "an input of shape [batch, ...]."
        )
    dims = [
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in tensor.shape.dim
    ]
    return name, tuple(dims[1:]), str(jax.dtypes.canonicalize_dtype(dtype)), dims[0]


def _takes_batches(
    graph: Graph,
    binding: Binding,
    values: Mapping[str, np.ndarray],
    shape: tuple[int | None, ...],
    dtype: str,
) -> bool:
    """Whether a graph that was exported for one record also takes several."""
    record = tuple(16 if d is None else d for d in shape)
    wanted = list(binding.outputs.values())

    def outputs(x: Any) -> list[Any]:
        return run(graph, {**values, binding.x: x}, wanted)

    try:
        found = jax.eval_shape(outputs, jax.ShapeDtypeStruct((3, *record), dtype))
    except TooExpensive:
        raise
    except Exception:
        return False
    return all(value.ndim and value.shape[0] == 3 for value in found)


# --- variables and their names ------------------------------------------------------------------


def _variables(graph: Graph) -> tuple[dict[str, str], set[str]]:
    """Initialisers that are variables -> "layer/variable" in the order of their use, and which of
    them are BatchNorm's moments."""
    labels = node_labels(graph)
    names: dict[str, str] = {}
    taken = Names()
    moments: set[str] = set()
    learnable = {
        name
        for name in graph.initialisers
        if graph.constants[name].ndim and graph.constants[name].dtype.kind in "fV"  # V: bfloat16
    }
    stands_for = {name: name for name in learnable}
    for node in graph.nodes:
        if node.op in _HAND_ON and node.inputs[0] in stands_for:
            stands_for[node.outputs[0]] = stands_for[node.inputs[0]]
            continue
        for position, value in enumerate(dict.fromkeys([*node.inputs, *reads(node)])):
            source = stands_for.get(value)
            role = _role(node, position)
            if source is None or source in names or role is None:
                continue
            names[source] = taken.free(_name(source, node, role, labels))
            if (node.op, position) in _MOMENTS:
                moments.add(source)
    return names, moments


def _role(node: Node, position: int) -> str | None:
    roles = _ROLES.get(node.op)
    return "weight" if roles is None or position >= len(roles) else roles[position]


def _name(value: str, node: Node, role: str, labels: Mapping[tuple[str, ...], str]) -> str:
    """What to call the variable `value`, first read by `node`."""
    plain = plain_name(value)
    if _ANONYMOUS.fullmatch(plain) or "const_fold" in plain:
        return f"{scope_of(node.name) or plain_name(labels[node.outputs])}/{role}"
    if "/" in plain:  # TensorFlow: the path of the operation that reads it
        head, _, last = plain.rpartition("/")
        return plain if head and last not in _TF_OPERATIONS else f"{head or last}/{role}"
    head, _, last = plain.rpartition(".")  # PyTorch: "layer1.0.conv1.weight"
    return (
        f"{head}/{last}"
        if head
        else f"{scope_of(node.name) or plain_name(node.name) or plain}/{last}"
    )


# --- the original -------------------------------------------------------------------------------


def _original(
    model: onnx.ModelProto,
    graph: Graph,
    values: Mapping[str, np.ndarray],
    binding: Binding,
    one_by_one: bool,
) -> Callable[[np.ndarray], Mapping[str, Any]]:
    """The model's outputs by ONNX Runtime, or else by the reference implementation in `onnx`.

    It is given what the outputs depend on and nothing else, and computes it as it stands: what was
    counted is then what it computes, and it keeps no constants that it might have folded.
    """
    x, outputs = binding.x, binding.outputs
    (kind,) = (value.type.tensor_type.elem_type for value in model.graph.input if value.name == x)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)

    def original(probe: np.ndarray) -> Mapping[str, Any]:
        bare = pruned(model)
        batches = [row[None] for row in probe] if one_by_one else [probe]
        wanted = list(outputs.values())

        def check_kept() -> None:
            programs.check_kept(
                "what ONNX' reference implementation, which keeps every value, computes",
                lambda x: run(graph, {**values, binding.x: x}, wanted),
                jax.numpy.asarray(batches[0]),
            )

        opened = bare if one_by_one else _with_open_batch(bare, x)
        compute = _runner(opened, x, wanted, check_kept)
        rows = [compute(np.asarray(batch, dtype)) for batch in batches]
        return {
            name: np.concatenate([row[i] for row in rows]) if len(rows) > 1 else rows[0][i]
            for i, name in enumerate(outputs)
        }

    return original


def _runner(
    model: onnx.ModelProto, x: str, wanted: list[str], check_kept: Callable[[], None]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    def by_reference() -> Callable[[np.ndarray], list[np.ndarray]]:
        check_kept()
        reference = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
        return lambda batch: reference.run(wanted, {x: batch})

    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return by_reference()
    runtime.disable_telemetry_events()  # what is audited is nobody else's business
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # it takes twice what it is asked for
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # an opset or type that the runtime does not have
        return by_reference()
    return lambda batch: session.run(wanted, {x: batch})


def _with_open_batch(model: onnx.ModelProto, x: str) -> onnx.ModelProto:
    """A copy that takes any number of records: some files carry the number of their export."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for value in (*opened.graph.input, *opened.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and (value.name == x or value in opened.graph.output):
            dims[0].dim_param = "n"
    del opened.graph.value_info[:]
    return opened
