"""Loading a model file is safe, whatever is in it."""

import base64
import importlib
import inspect
import io
import itertools
import json
import marshal
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import damage
import h5py
import jax
import keras
import numpy as np
import pytest

import jaxmeter as jm

for package in ("tensorflow", "tf_keras", "tf2onnx", "onnx", "onnxruntime"):
    pytest.importorskip(package)
from onnx import TensorProto, external_data_helper, numpy_helper  # noqa: E402
from onnx import helper as h  # noqa: E402
from tensorflow.core.framework import op_def_pb2, variable_pb2  # noqa: E402
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2  # noqa: E402
from tensorflow.python.client import pywrap_tf_session  # noqa: E402
from tf_keras.protobuf import saved_metadata_pb2  # noqa: E402

from jaxmeter.intake import frameworks  # noqa: E402
from jaxmeter.intake.safety import served as parts  # noqa: E402
from jaxmeter.intake.safety.files import boundary, check_graph  # noqa: E402
from jaxmeter.intake.safety.keras_config import check_config  # noqa: E402
from jaxmeter.intake.safety.operations import ALLOWED, STATEFUL  # noqa: E402
from jaxmeter.intake.safety.operations import refused as off_the_list  # noqa: E402
from jaxmeter.intake.safety.saved_model import read  # noqa: E402


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("loader") / "scratch"
    scratch.mkdir()
    with damage.Loader(scratch) as found:
        yield found


@pytest.fixture(scope="module")
def samples(loader, tmp_path_factory) -> Path:
    """A folder with a folder for each format."""
    folder = tmp_path_factory.mktemp("samples")
    loader.make(folder)
    return folder


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", damage.FORMATS)
def test_samples_load(samples, loader, format):
    answer = loader.load(60, **damage.target_of(format, samples / format))
    assert answer.outcome == "target", answer


def fuzzed(format: str, number: int, samples: Path, loader: damage.Loader, folder: Path) -> Counter:
    """Outcomes of damaged loads; raises at the end if one was not as it must be."""
    outcomes: Counter[str] = Counter()
    wrong = []
    for seed in range(number):
        place = folder / str(seed)
        shutil.copytree(samples / format, place)
        random = np.random.default_rng([damage.FORMATS.index(format), seed])
        what = damage.damage(format, place, random)
        before = damage.contents(place, loader.scratch)
        answer = loader.load(**damage.target_of(format, place))
        outcomes[answer.outcome] += 1
        problems = []
        if answer.outcome not in ("target", "ValueError", "FileNotFoundError"):
            problems.append(f"{answer.outcome}: {answer.message[-600:]}")
        elif answer.outcome != "target" and str(place) not in answer.message:
            problems.append(f"does not name the file: {answer.message[:200]}")
        if damage.contents(place, loader.scratch) != before:
            problems.append("wrote something")
        if answer.grown > 2**30:
            problems.append(f"grew by {answer.grown:,} bytes")
        if answer.wrote:
            problems.append(f"printed {answer.wrote[:80]!r}")
        if problems:
            wrong.append(f"seed {seed} ({what}): {'; '.join(problems)}")
        shutil.rmtree(place)
    assert not wrong, f"{len(wrong)} of {number}:\n" + "\n".join(wrong)
    return outcomes


@pytest.mark.parametrize("format", damage.FORMATS)
def test_damaged_files_are_refused_or_load(samples, loader, tmp_path, format):
    assert sum(fuzzed(format, 40, samples, loader, tmp_path).values()) == 40


@pytest.mark.study
@pytest.mark.parametrize("format", damage.FORMATS)
def test_many_damaged_files_are_refused_or_load(samples, loader, tmp_path, format):
    print(format, dict(fuzzed(format, 250, samples, loader, tmp_path)))


# --- attacks ------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that payloads write, and the import of a module `payload` too; it stays away."""
    place = tmp_path / "canary"
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "payload.py").write_text(
        f"open({str(place)!r}, 'w').close()\n"
        "def run(*args, **kwargs): pass\n"
        "class Payload:\n"
        "    from_config = classmethod(run)\n"
    )
    monkeypatch.syspath_prepend(modules)
    yield place
    assert not place.exists(), "the file's code ran"
    assert "payload" not in sys.modules


@pytest.fixture(scope="module", params=["keras", "h5", "json", "h5-keras2", "json-keras2"])
def edited(request, samples):
    """Writes a model of a format with a layer more, and gives the arguments that load it."""

    def write(folder: Path, layer: dict) -> dict:
        format = request.param
        origin = samples / format.replace("json-keras2", "h5-keras2")
        place = Path(shutil.copytree(origin, folder / "model"))
        if format == "keras":
            with zipfile.ZipFile(place / "model.keras") as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            config = json.loads(members["config.json"])
            members["config.json"] = json.dumps(added(config, layer))
            write_zip(place / "model.keras", members)
        elif format.startswith("h5"):
            with h5py.File(place / "model.h5", "r+") as file:
                config = added(json.loads(file.attrs["model_config"]), layer)
                file.attrs["model_config"] = json.dumps(config)
        elif format == "json":
            path = place / "model.json"
            path.write_text(json.dumps(added(json.loads(path.read_text()), layer)))
        else:
            with h5py.File(place / "model.h5") as file:
                config = json.loads(file.attrs["model_config"]) | {"keras_version": "2.15.0"}
            (place / "model.json").write_text(json.dumps(added(config, layer)))
            return {"source": place / "model.json", "weights": place / "model.h5"}
        return damage.target_of(format, place)

    return write


def added(config: dict, layer: dict) -> dict:
    config["config"]["layers"].insert(1, layer)
    return config


def write_zip(path: Path, members: dict) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def dense(activation) -> dict:
    config = {"name": "evil", "units": 2, "activation": activation}
    return {"class_name": "Dense", "module": "keras.layers", "config": config}


def function(module: str, name: str) -> dict:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def layer(kind: str, module: str | None = None, registered: str | None = None, **config) -> dict:
    config = {"name": "evil", **config}
    found = {"class_name": kind, "config": config, "registered_name": registered}
    return found | ({"module": module} if module else {})


def marshalled(canary: Path) -> dict:
    """What Keras writes for `lambda *x: open(canary, "w") and x[0]`."""
    code = eval(f"lambda *x: open({str(canary)!r}, 'w') and x[0]").__code__
    packed = base64.b64encode(marshal.dumps(code)).decode()
    new = {"code": packed, "defaults": None, "closure": None}
    return {"class_name": "__lambda__", "config": new}


def old_lambda(canary: Path) -> dict:
    inner = marshalled(canary)["config"]["code"]
    return layer("Lambda", function=[inner, None, None], function_type="lambda")


def op_layer(op: str, **attributes) -> dict:
    node = {"name": "evil", "op": op, "input": ["x"], "attr": attributes}
    return layer("TensorFlowOpLayer", node_def=node, constants={}, trainable=True)


CODE = r"run Python code from the file: 'evil' \("
STRANGE = "Nothing is imported because a file says so.*custom_objects"
READS = "reads the file '/etc/passwd'"
OPERATIONS = "operations that run code, touch files|No Keras here|cannot be opened|no Keras has"
LAYERS = {
    "lambda": (lambda c: layer("Lambda", "keras.layers", function=marshalled(c)), CODE),
    "old-lambda": (old_lambda, CODE),
    "dotted": (lambda c: layer("layers.Lambda", "keras", function=marshalled(c)), CODE),
    "renamed": (
        lambda c: layer("Dense2", "keras.layers", "Lambda", function=marshalled(c)),
        CODE,
    ),
    "packaged": (lambda c: old_lambda(c) | {"class_name": "keras>Lambda"}, CODE),
    "torch": (lambda c: layer("TorchModuleWrapper", "keras.layers", output_shape=[2]), CODE),
    "saved": (lambda c: layer("TFSMLayer", "keras.layers", filepath="/etc"), CODE),
    "import": (lambda c: layer("Payload", "payload"), STRANGE),
    "import-function": (lambda c: dense(function("payload", "run")), STRANGE),
    "import-initializer": (
        lambda c: (
            dense("relu") | {"config": {"units": 2, "bias_initializer": layer("X", "payload")}}
        ),
        STRANGE,
    ),
    "import-build": (lambda c: dense(function("keras.payload", "run")), STRANGE),
    "type-spec": (
        lambda c: dense({"class_name": "__typespec__", "spec_name": "P", "module": "payload"}),
        r"\(__typespec__\)",
    ),
    "os": (lambda c: layer("system", "os", command=f"touch {c}"), STRANGE),
    "os-function": (lambda c: dense(function("os", "system")), STRANGE),
    "os-registered": (lambda c: dense(function("os", "system") | {"config": "relu"}), STRANGE),
    "through-keras": (lambda c: dense(function("keras.src.activations", "os.system")), STRANGE),
    "download": (lambda c: dense(function("keras.utils", "get_file")), STRANGE),
    "data": (lambda c: dense(function("keras.datasets.mnist", "load_data")), STRANGE),
    "load": (
        lambda c: layer("load_model", "keras.models", filepath=str(c)),
        "reads the file|no Ke",
    ),
    "configure": (lambda c: dense(function("keras.config", "set_floatx")), STRANGE),
    "text": (lambda c: layer("TextVectorization", "keras.layers", vocabulary="/etc/passwd"), READS),
    "strings": (lambda c: layer("StringLookup", "keras.layers", vocabulary="/etc/passwd"), READS),
    "integers": (lambda c: layer("IntegerLookup", vocabulary="/etc/passwd"), READS),
    "column": (
        lambda c: layer(
            "DenseFeatures",
            feature_columns=[
                {"class_name": "V", "config": {"key": "a", "vocabulary_file": "/etc/passwd"}}
            ],
        ),
        READS,
    ),
    "method": (
        lambda c: layer("ClassMethod", cls_symbol="io.TFRecordWriter", method_name="__init__"),
        r"'evil' \(ClassMethod\)",
    ),
    **{
        f"tf.{name}": (lambda c, name=name: layer("TFOpLambda", function=name), r"calls 'tf\.")
        for name in (
            "io.write_file",
            "io.read_file",
            "raw_ops.ReadFile",
            "py_function",
            "numpy_function",
            "compat.v1.py_func",
            "load_op_library",
            "print",
            "keras.backend.print_tensor",
            "keras.backend.set_floatx",
            "keras.utils.get_file",
            "compat.v1.io.write_file",
            "summary.write",
            "data.TextLineDataset",
        )
    },
    "write-op": (lambda c: op_layer("WriteFile"), OPERATIONS),
    "read-op": (lambda c: op_layer("ReadFile"), OPERATIONS),
    "python-op": (lambda c: op_layer("PyFunc", token={"s": "cHlmdW5jXzA="}), OPERATIONS),
    "packed-op": (
        lambda c: layer("TensorFlowOpLayer", node_def="\n\x04evil\x12\tWriteFile"),
        OPERATIONS,
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_that_do_more_than_compute(edited, canary, tmp_path, kind):
    make, message = LAYERS[kind]
    arguments = edited(tmp_path, make(canary))
    before = damage.contents(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message) as error:
            jm.load_target(**arguments)
    assert str(arguments["source"]) in str(error.value)
    assert damage.contents(tmp_path / "model") == before
    assert keras.config.floatx() == "float32"


# --- whole architectures, on every route ----------------------------------------------------------


ROUTES = ["keras", "keras-keras2", "h5", "json", "h5-keras2", "json-keras2", "saved-model"]


@pytest.fixture(scope="module", params=ROUTES)
def holding(request, samples):
    """Writes a model of a format with an architecture of its own; gives what loads it."""

    def write(folder: Path, config: dict) -> dict:
        format = request.param
        origin = {"keras-keras2": "keras", "json-keras2": "h5-keras2"}.get(format, format)
        place = Path(shutil.copytree(samples / origin, folder / "model"))
        if format.startswith("keras"):
            path = place / "model.keras"
            with zipfile.ZipFile(path) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            members["config.json"] = json.dumps(with_modules(config, format == "keras"))
            if format == "keras-keras2":
                members["metadata.json"] = json.dumps({"keras_version": "2.15.0"})
            write_zip(path, members)
        elif format.startswith("h5"):
            with h5py.File(place / "model.h5", "r+") as file:
                file.attrs["model_config"] = json.dumps(config)
        elif format.startswith("json"):
            version = {} if format == "json" else {"keras_version": "2.15.0"}
            (place / "model.json").write_text(json.dumps(config | version))
            weights = "model.weights.h5" if format == "json" else "model.h5"
            return {"source": place / "model.json", "weights": place / weights}
        else:
            path = place / "model" / "keras_metadata.pb"
            metadata = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes())
            root = next(node for node in metadata.nodes if node.node_path == "root")
            root.identifier = "_tf_keras_network"
            network = json.loads(root.metadata)
            root.metadata = json.dumps({**network, **config, "is_graph_network": True})
            path.write_bytes(metadata.SerializeToString())
        return damage.target_of(origin, place)

    return write


def with_modules(config, new: bool):
    """A config as .keras files have it: every class with its module."""
    if isinstance(config, list):
        return [with_modules(item, new) for item in config]
    if not isinstance(config, dict):
        return config
    kind = config.get("class_name", "__")
    places = {
        "Functional": "keras.src.models.functional" if new else "keras.src.engine.functional",
        **dict.fromkeys(["TFOpLambda", "SlicingOpLambda"], "keras.src.layers.core.tf_op_layer"),
        **dict.fromkeys(
            ["DropoutWrapper", "ResidualWrapper"], "keras.src.layers.rnn.cell_wrappers"
        ),
    }
    place = {} if kind.startswith("__") else {"module": places.get(kind, "keras.layers")}
    return place | {key: with_modules(value, new) for key, value in config.items()}


def functional(*layers: dict) -> dict:
    """A classifier with some layers more."""
    x = layer("InputLayer", batch_input_shape=[None, 6, 6], dtype="float32")
    out = layer("Dense", units=3, activation="softmax")
    for part, name, nodes in [(x, "x", []), (out, "out", [[["x", 0, 0, {}]]])]:
        part["config"]["name"] = part["name"] = name
        part["inbound_nodes"] = nodes
    inner = {"name": "net", "layers": [x, *layers, out]}
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [["out", 0, 0]]}
    return {"class_name": "Functional", "config": inner | ends}


def called(part: dict, *nodes: list) -> dict:
    """A layer of a functional model."""
    return part | {"name": part["config"]["name"], "inbound_nodes": list(nodes)}


def fixed(value, **arguments) -> list:
    return ["_CONSTANT_VALUE", -1, value, arguments]


def on_constants(kind: str, symbol: str, value, **arguments) -> dict:
    """A function of TensorFlow that tf_keras calls while it opens the file."""
    return functional(called(layer(kind, function=symbol), fixed(value, **arguments)))


def wrapped(kind: str, field: str, canary: Path) -> dict:
    """A recurrent layer whose cell's wrapper brings bytecode."""
    code = marshalled(canary)["config"]["code"]
    brought = {field: code, f"{field}_type": "lambda", f"{field}_module": "builtins"}
    keep = {"state_keep_prob": 0.5} if kind == "DropoutWrapper" else {}
    wrapper = layer(kind, cell=layer("GRUCell", units=6), **brought, **keep)
    return functional(called(layer("RNN", cell=wrapper), [["x", 0, 0, {}]]))


def activated(activation) -> dict:
    part = called(layer("Activation", activation=activation), [["x", 0, 0, {}]])
    return functional(part)


NOT_LISTED = r"calls 'tf\..*', which is not on the list of functions that only compute"
ARCHITECTURES = {
    "residual-bytecode": (
        lambda c: wrapped("ResidualWrapper", "residual_fn", c),
        r"run Python code.*'evil' \(ResidualWrapper, residual_fn",
    ),
    "dropout-bytecode": (
        lambda c: wrapped("DropoutWrapper", "dropout_fn", c),
        r"run Python code.*'evil' \(DropoutWrapper, dropout_fn",
    ),
    **{
        f"{kind}-{symbol}": (
            lambda c, kind=kind, symbol=symbol, arguments=arguments: on_constants(
                kind, symbol, str(c), **arguments
            ),
            NOT_LISTED,
        )
        for kind in ("TFOpLambda", "SlicingOpLambda")
        for symbol, arguments in {
            "io.write_file": {"contents": "x"},
            "compat.v1.write_file": {"contents": "x"},
            "io.read_file": {},
            "compat.v1.read_file": {},
            "compat.v1.matching_files": {},
            "io.gfile.makedirs": {},
            "io.gfile.rmtree": {},
            "compat.v1.gfile.MakeDirs": {},
            "load_library": {},
            "load_op_library": {},
            "rpc_client": {"timeout_in_ms": 1},
            "rpc_server": {},
            "summary.create_file_writer": {},
            "raw_ops.WriteFile": {"contents": "x"},
        }.items()
    },
    "constants-alone": (
        lambda c: on_constants("TFOpLambda", "math.add", 1.0, y=2.0),
        r"called on constants alone.*'evil' \(TFOpLambda\)",
    ),
    "constants-in-a-list": (
        lambda c: functional(
            called(layer("TFOpLambda", function="concat"), [fixed([1.0], axis=0), fixed([2.0])])
        ),
        "called on constants alone",
    ),
    "constants-in-a-tuple": (
        lambda c: on_constants(
            "TFOpLambda", "math.add", 1.0, y={"class_name": "__tuple__", "items": ["x", 0, 0]}
        ),
        "called on constants alone",
    ),
    "constants-in-keras-3": (
        lambda c: functional(
            called(
                layer("Tile", "keras.src.ops.numpy", repeats=2**40),
                {"args": [{"class_name": "__numpy__", "config": {"value": [1], "dtype": "int8"}}]},
            )
        ),
        "called on constants alone",
    ),
    "composite": (
        lambda c: on_constants(
            "TFOpLambda", "identity", {"class_name": "TypeSpec", "type_spec": "tf.data.Dataset"}
        ),
        "called on constants alone",
    ),
    "object-array": (
        lambda c: activated(
            {"class_name": "__numpy__", "config": {"value": [0], "dtype": "V2000000000"}}
        ),
        "no Keras has",
    ),
    "function": (lambda c: activated(function("os", "system")), STRANGE),
    "word": (lambda c: activated("deserialize"), STRANGE),
    "builtins-exit": (lambda c: activated(function("builtins", "exit")), STRANGE),
    "builtins-breakpoint": (lambda c: activated(function("builtins", "breakpoint")), STRANGE),
    "builtins-eval": (
        lambda c: activated(function("builtins", "eval") | {"registered_name": "function"}),
        STRANGE,
    ),
    "builtins-class": (lambda c: activated(layer("exit", "builtins")), STRANGE),
    "function-as-class": (
        lambda c: activated(layer("deserialize_keras_object", config=function("os", "system"))),
        "no Keras has",
    ),
    "tests-of-keras": (
        lambda c: activated(layer("Dense", "keras.src.layers.core.dense_test", units=2)),
        STRANGE,
    ),
    "elsewhere-in-keras": (lambda c: activated(layer("Dense", "keras.datasets", units=2)), STRANGE),
    "compiled-inside": (
        lambda c: functional(
            called(
                functional() | {"compile_config": {"loss": function("payload", "run")}},
                [["x", 0, 0, {}]],
            )
        ),
        STRANGE,
    ),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures_that_do_more_than_compute(holding, canary, tmp_path, kind):
    make, message = ARCHITECTURES[kind]
    arguments = holding(tmp_path, make(canary))
    if Path(arguments["source"]).is_dir() and message in (STRANGE, "no Keras has"):
        # What tf_keras does not know is left out; the graph is what it was.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert jm.load_target(**arguments).spec.source.route == "saved-model"
    else:
        refused_unchanged(tmp_path, message, **arguments)
    assert keras.config.floatx() == "float32"


def refused(config: dict, message: str = "", custom: dict | None = None) -> bool:
    """Whether a config is refused, by a message."""
    try:
        check_config(config, "the file", False, custom or {})
    except ValueError as error:
        assert re.search(message, str(error)), error
        return True
    return False


# Where TensorFlow has functions of arrays. Beside them are those of files, sockets and processes.
COMPUTING = re.compile(
    r"tensorflow\.python\.(framework\.(constant_op|tensor_conversion)|ops\.(gen_)?(array|math|nn|linalg"
    r"|image|bitwise|spectral|special_math|check|clip|sort|sparse|random|stateless_random|random_crop"
    r"|ctc|embedding|bincount|histogram|manip|data_flow|string|candidate_sampling)_ops(_impl|_stack)?"
    r"|ops\.(linalg\.linalg_impl|confusion_matrix|numerics|nn_impl|tensor_getitem_override)"
    r"|ops\.(signal|ragged)\.\w+)|tf_keras\.src\.(activations|backend|losses|metrics\.accuracy_metrics)"
)


def test_symbols_of_tensorflow_that_do_not_compute_are_refused():
    export = importlib.import_module("tensorflow.python.util.tf_export")
    importlib.import_module("tf_keras")
    symbols = export._NAME_TO_SYMBOL_MAPPING  # what tf_keras looks names up in
    passed = {kind: set() for kind in ("TFOpLambda", "SlicingOpLambda")}
    for symbol in symbols:
        for kind, names in passed.items():
            if not refused(layer(kind, function=symbol), NOT_LISTED):
                names.add(symbol)
    assert passed["TFOpLambda"] == passed["SlicingOpLambda"]
    names = passed["TFOpLambda"]
    assert 1000 < len(names) < len(symbols) / 3
    for name in names:
        function = inspect.unwrap(symbols[name])
        assert COMPUTING.fullmatch(function.__module__), name
        parameters = inspect.signature(function).parameters
        assert not {"filename", "path", "host", "address", "func"} & parameters.keys(), name
    assert {"math.add", "nn.relu", "__operators__.getitem", "compat.v1.nn.conv2d"} <= names
    for name in ("", "math", "Math.add", "math.add ", "compat.v1.compat.v1.math.add", None, 1, {}):
        assert refused(layer("TFOpLambda", function=name or "x"), NOT_LISTED)


def layers_of_tf_keras() -> dict:
    """Every layer that tf_keras finds by its name, or that it has."""
    serialization = importlib.import_module("tf_keras.src.layers.serialization")
    serialization.populate_deserializable_objects()
    tf_keras = importlib.import_module("tf_keras")
    places = (tf_keras.layers, tf_keras.layers.experimental)
    public = {n: c for place in places for n, c in vars(place).items() if inspect.isclass(c)}
    return {**public, **serialization.LOCAL.ALL_OBJECTS}


REFUSED = {
    # code of the file's own, and methods by their names
    *("Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"),
    *("ClassMethod", "InstanceMethod", "InstanceProperty"),
    # of no use without a subclass, or no classes at all
    *("AbstractRNNCell", "BaseRandomLayer", "PreprocessingLayer", "_RNNCellWrapper", "Input"),
    *("add", "average", "concatenate", "dot", "maximum", "minimum", "multiply", "subtract"),
    *("DynamicEmbedding", "DynamicLookup"),  # tables that training changes
}


def test_every_layer_of_either_keras_is_decided_upon():
    new = {name for name, kind in vars(keras.layers).items() if inspect.isclass(kind)}
    names = {*layers_of_tf_keras(), *new}
    assert {
        name for name in names if refused({"class_name": name, "config": {}})
    } == REFUSED & names
    operations = importlib.import_module("keras.src.ops.operation").Operation
    layer_class = keras.layers.Layer

    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    for kind in below(operations) - below(layer_class):
        if kind.__module__.startswith("keras.src.ops."):
            parameters = set(inspect.signature(kind.call).parameters)
            parameters |= set(inspect.signature(kind.__init__).parameters)
            functions = {"function", "f", "fun", "cond", "body", "body_fun", "true_fn", "branches"}
            part = layer(kind.__name__, kind.__module__)
            takes = bool(functions & parameters) or kind.__name__ in ("Operation", "Function")
            base = kind.__name__ == "SegmentReduction"  # of the four that can be called
            assert refused(part) == (takes or base), kind


def test_functions_in_any_field_of_any_layer_of_keras_2():
    found = set()
    bytecode = ["code", None, None]
    for name, kind in layers_of_tf_keras().items():
        if name in REFUSED:
            continue
        classes = [c for c in kind.__mro__ if c.__module__.startswith("tf_keras.")]
        parameters = {p for c in classes for p in inspect.signature(c.__init__).parameters}
        source = "".join(
            inspect.getsource(c.from_config) for c in classes if "from_config" in vars(c)
        )
        read = set(re.findall(r'"(\w+)"', source))
        for field in sorted((parameters | read) - {"self", "args", "kwargs", "custom_objects"}):
            if re.search(r"activation|initializer|regularizer|constraint|cell|layer", field):
                value = function("payload", "run")
                found.add(field)
            elif re.search(r"(_fn|function|visitor|conv_op|lambda)(_type|_module)?$", field):
                value = bytecode
                found.add(field)
            else:
                value = {"class_name": "__lambda__", "config": {"code": "code"}}
            assert refused(layer(name, **{field: value})), (name, field)
    assert {"residual_fn", "dropout_fn", "dropout_fn_module", "recurrent_activation"} <= found


class Mine:
    """Stands for what somebody gives by name."""


# Parts that name something at hand, and something else by another of their names.
BESIDE = {
    "registered": function("os", "system") | {"registered_name": "mine"},
    "unregistered": function("os", "mine") | {"registered_name": "system"},
    "class": layer("system", "os", "mine"),
    "class-registered": layer("mine", "os", "system"),
    "class-null": layer("mine", "payload"),
    "lambda": layer("Lambda", "keras.layers", "mine"),
    "last": function("os", "system") | {"registered_name": "package>mine"},
    "longer": function("os", "mine>system"),
    "builtin": function("builtins", "eval") | {"registered_name": "mine"},
    "package": function("builtins", "exec"),
    "spec": {
        "class_name": "__typespec__",
        "spec_name": "Payload",
        "module": "payload",
        "registered_name": "mine",
        "config": [],
    },
    "wrapper": layer(
        "ResidualWrapper", registered="package>ResidualWrapper", residual_fn="x", cell=None
    ),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_custom_objects_are_taken_by_their_own_name_only(edited, canary, tmp_path, kind):
    custom = {"mine": Mine, "package>exec": Mine, "package>ResidualWrapper": Mine}
    assert refused(BESIDE[kind], custom=custom)
    arguments = edited(tmp_path, dense(BESIDE[kind]))
    refused_unchanged(tmp_path, "", **arguments, custom_objects=custom)


def test_custom_objects_are_found_by_every_name_that_keras_writes():
    custom = {"mine": Mine, "package>other": Mine}
    for part in (
        {"class_name": "mine", "config": {"loss_fn": "x", "activation": "y", "module": "z"}},
        layer("mine", "a.module", "mine"),
        layer("mine", "a.module", "package>mine"),
        layer("package>mine") | {"registered_name": "package>mine"},
        layer("other", "a.module", "package>other"),
        layer("Mine", "a.module", "mine"),
        function("a.module", "mine"),
        function("builtins", "mine") | {"registered_name": "function"},
        function("builtins", "other") | {"registered_name": "function"},
        dense("mine"),
        dense("package>other"),
    ):
        assert not refused(part, custom=custom), part
        assert refused(part)
    # A class that nobody has stands for no function, and for nothing in a module.
    nobodys = {"class_name": "Nobodys", "config": {"name": "evil"}}
    assert not refused(nobodys, custom={"Nobodys": None})
    for part in (function("a.module", "Nobodys"), dense("Nobodys"), nobodys | {"module": "a"}):
        assert refused(part, custom={"Nobodys": None})


def test_what_keras_writes_in_a_way_of_its_own_passes():
    place = "tf_keras.src.applications.inception_resnet_v2"
    tensorflows = layer("Constant", "tensorflow.python.ops.init_ops_v2", "Constant", value=0)
    for part in (
        layer("CustomScaleLayer", place, "Custom>CustomScaleLayer", scale=0.1),
        layer("Custom>Adam", "keras.optimizers", "Custom>Adam"),
        layer("Functional", "keras.engine.functional", "Functional", layers=[]),
        layer("Dense", "keras.layers", bias_initializer=tensorflows),
        dense(function("builtins", "relu") | {"registered_name": "function"}),
        dense(function("keras.activations", "gelu")),
        layer("Activation", "keras.layers", activation="leaky_relu", dtype="mixed_float16"),
        layer("DropoutWrapper", cell=layer("GRUCell", units=2), input_keep_prob=0.5),
        layer("TextVectorization", vocabulary=["a", "b"], standardize="lower"),
        layer("TFOpLambda", function="compat.v1.nn.conv2d"),
        layer("MeanMetricWrapper", fn="somebodys_metric"),
        layer("Embedding", "keras.layers", quantization_config=None, function=None),
        {"class_name": "TypeSpec", "type_spec": "tf.TensorSpec", "serialized": []},
        {"class_name": "__numpy__", "config": {"value": [1.0], "dtype": "float32"}},
    ):
        assert not refused(part), part


@pytest.mark.parametrize("format", ["h5", "json"])
def test_what_is_registered_with_tf_keras_is_at_hand(tmp_path, format):
    """Also where the file names the module that it was registered in."""
    tf_keras = importlib.import_module("tf_keras")
    kind = tf_keras.saving.register_keras_serializable("ours", "Scaled")(scaled(tf_keras))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layers = tf_keras.layers
            model = tf_keras.Sequential(
                [layers.InputLayer((4,)), kind(name="mine"), layers.Dense(3, "softmax")]
            )
            arguments = {"source": tmp_path / f"m.{format}"}
            if format == "h5":
                model.save(arguments["source"])
            else:
                arguments["source"].write_text(model.to_json())
                assert '"module"' in model.to_json()
                arguments["weights"] = tmp_path / "m.weights.h5"
                model.save_weights(arguments["weights"])
            target = jm.load_target(**arguments)
    finally:
        registration = importlib.import_module("tf_keras.src.saving.object_registration")
        del registration._GLOBAL_CUSTOM_OBJECTS["ours>Scaled"]
        del registration._GLOBAL_CUSTOM_NAMES[kind]
    assert target.spec.variables[0] == "mine/w" and target.spec.source.difference < 1e-5


@pytest.mark.parametrize("format", ["keras", "h5", "saved-model"])
def test_arithmetic_with_constants_loads(tmp_path, format):
    """Constants come first in what tf_keras writes for `1 - x`; a layer's output is beside them."""
    new = format == "keras"
    framework = keras if new else importlib.import_module("tf_keras")
    layers = framework.layers
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        x = framework.Input((6,))
        inner = framework.Sequential([framework.Input((6,)), layers.Dense(4, "relu", name="a")])
        inner.compile("adam", "mse", metrics=["accuracy"])
        z = 2.0 - inner(x)
        z = layers.Concatenate()([z, z])[:, 1:, None] / 3.0
        out = layers.Dense(3, "softmax", name="out")(layers.Flatten()(z))
        model = framework.Model(x, out)
        path = tmp_path / ("m" if format == "saved-model" else f"m.{format}")
        model.save(path, **({"save_format": "tf"} if format == "saved-model" else {}))
        target = jm.load_target(path)
    assert new or "_CONSTANT_VALUE" in model.to_json()
    assert target.spec.source.route != "saved-model" and target.spec.source.difference < 1e-5


def test_a_custom_loss_does_not_keep_a_model_closed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = damage.network(keras)
        model.compile(loss=lambda y, p: keras.ops.mean(p))
        model.save(tmp_path / "m.keras")
        (tmp_path / "m.json").write_text(model.to_json())
        model.save_weights(tmp_path / "m.weights.h5")
    assert "__lambda__" in (tmp_path / "m.json").read_text()
    assert jm.load_target(tmp_path / "m.keras").spec.n_classes == 3
    weights = tmp_path / "m.weights.h5"
    assert jm.load_target(tmp_path / "m.json", weights=weights).spec.n_classes == 3


def test_no_file_ends_the_process(tmp_path):
    with pytest.raises(ValueError, match="the-file cannot be opened, SystemExit"):
        with boundary(tmp_path / "the-file"):
            sys.exit(3)


# --- archives -----------------------------------------------------------------------------------


def entry(name: str, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.flag_bits = flags
    return info


def pickled(canary: Path) -> bytes:
    class Payload:
        def __reduce__(self):
            return open, (str(canary), "w")

    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Payload()], object), y=np.zeros(1, int))
    return buffer.getvalue()


ARCHIVES = {
    "up": ([("../up.txt", b"x")], "would be written outside"),
    "up-inside": ([("assets/../../up.txt", b"x")], "would be written outside"),
    "absolute": ([("/tmp/up.txt", b"x")], "would be written outside"),
    "drive": ([("C:\\up.txt", b"x")], "would be written outside"),
    "backslashes": ([("..\\up.txt", b"x")], "would be written outside"),
    "link": ([(entry("assets/link", stat.S_IFLNK | 0o777), b"/etc/passwd")], "holds a link"),
    "twice": ([("config.json", b"{}")], "twice under one name"),
    "vocabulary": ([("assets/text/vocabulary.txt", b"a\nb")], "brings vocabulary files"),
    "bomb": ([("zeros", bytes(2**28 + 2**25))], "zip bomb"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(samples, canary, tmp_path, kind):
    members, message = ARCHIVES[kind]
    path = Path(shutil.copy(samples / "keras" / "model.keras", tmp_path))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)
    refused_unchanged(tmp_path, message, source=path)


def refused_unchanged(folder: Path, message: str, **arguments) -> None:
    """Asserts that a load is refused with a message that names the file, and writes nothing."""
    before = damage.contents(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message) as error:
            jm.load_target(**arguments)
    assert str(arguments["source"]) in str(error.value)
    assert damage.contents(folder) == before
    assert not Path("/tmp/up.txt").exists()


def test_an_encrypted_archive(samples, tmp_path):
    path = Path(shutil.copy(samples / "keras" / "model.keras", tmp_path))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    refused_unchanged(tmp_path, "encrypted", source=path)


def test_weights_that_are_pickled(samples, canary, tmp_path):
    path = Path(shutil.copy(samples / "keras" / "model.keras", tmp_path))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    del members["model.weights.h5"]
    write_zip(path, members | {"model.weights.npz": pickled(canary)})
    refused_unchanged(tmp_path, r"lacks model\.weights\.h5", source=path)


def test_a_config_that_is_a_bomb(samples, tmp_path):
    path = Path(shutil.copy(samples / "keras" / "model.keras", tmp_path))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for config, message in [
        (b"[" * 100_000 + b"]" * 100_000, "damaged"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, str(path)),
        (b'"' + b" " * 2**26 + b'"', "larger than any could be"),
    ]:
        write_zip(path, members | {"config.json": config})
        refused_unchanged(tmp_path, message, source=path)


@pytest.mark.parametrize("units", [2**22, 2**34])
@pytest.mark.parametrize("format", ["keras", "h5", "json", "h5-keras2"])
def test_variables_that_no_file_could_fill(samples, loader, tmp_path, format, units):
    place = Path(shutil.copytree(samples / format, tmp_path / "model"))
    arguments = damage.target_of(format, place)

    def larger(text):
        config = json.loads(text)
        config["config"]["layers"][-1]["config"]["units"] = units
        return json.dumps(config)

    if format == "keras":
        with zipfile.ZipFile(place / "model.keras") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        write_zip(place / "model.keras", {**members, "config.json": larger(members["config.json"])})
    elif format == "json":
        path = place / "model.json"
        path.write_text(larger(path.read_text()))
    else:
        with h5py.File(place / "model.h5", "r+") as file:
            file.attrs["model_config"] = larger(file.attrs["model_config"])
    answer = loader.load(**arguments)
    assert answer.outcome == "ValueError" and arguments["source"] in answer.message
    assert "far more than the file could hold" in answer.message
    assert answer.grown < 2**28


def test_layers_that_grow(loader, tmp_path):
    layers = [keras.layers.UpSampling2D(50_000), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers, keras.layers.Dense(3)])
    model.save(tmp_path / "m.keras")
    answer = loader.load(source=str(tmp_path / "m.keras"))
    assert answer.outcome == "ValueError" and "--max-bytes" in answer.message
    assert answer.grown < 2**28


def test_records_that_are_pickled(canary, tmp_path):
    from jaxmeter.data.npz import read_npz

    for name, data in [
        ("a.npz", pickled(canary)),
        ("a.npy", pickled(canary)),
        ("b.npz", pickle.dumps({"x": 1})),
    ]:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as records"):
            read_npz(path)


# --- HDF5 ---------------------------------------------------------------------------------------


def kernel(file):
    """A group with a dataset of the model's, and the dataset's name."""
    found = []
    file.visititems(lambda name, item: found.append(item))
    path = next(v.name for v in found if isinstance(v, h5py.Dataset) and v.ndim > 1)
    return file[path].parent, path.rpartition("/")[2]


def external_link(file, secret):
    group, name = kernel(file)
    del group[name]
    group[name] = h5py.ExternalLink(str(secret), "/x")


def external_storage(file, secret):
    group, name = kernel(file)
    shape = group[name].shape
    del group[name]
    group.create_dataset(name, shape, "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def virtual(file, secret):
    group, name = kernel(file)
    layout = h5py.VirtualLayout(group[name].shape, "f4")
    layout[...] = h5py.VirtualSource(str(secret), "x", group[name].shape)
    del group[name]
    group.create_virtual_dataset(name, layout)


def cycle(file, secret):
    group, name = kernel(file)
    del group[name]
    group[name] = h5py.SoftLink(group.name + "/" + name)


def hard_cycle(file, secret):
    group, name = kernel(file)
    group["again"] = file["/"]
    del group[name]


def huge(file, secret):
    group, name = kernel(file)
    del group[name]
    group.create_dataset(name, (2**16, 2**16, 2**8), "f4", chunks=(64, 64, 1))


def many_huge(file, secret):
    for i in range(20):
        file.create_dataset(f"huge{i}", (2**26,), "f4", chunks=(2**20,))


HDF5 = {
    "external-link": (external_link, "links to another file"),
    "external-storage": (external_storage, "in other files"),
    "virtual": (virtual, "in other files"),
    "cycle": (cycle, "damaged"),
    "hard-cycle": (hard_cycle, "cannot be opened"),
    "huge": (huge, "claims 4,398,046,511,104 bytes"),
    "many-huge": (many_huge, "which are not in the file"),
}


@pytest.mark.parametrize("kind", HDF5)
@pytest.mark.parametrize("format", ["keras", "h5", "h5-keras2", "json"])
def test_hdf5(samples, tmp_path, format, kind):
    edit, message = HDF5[kind]
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((3, 3, 1, 2), np.float32)
    place = Path(shutil.copytree(samples / format, tmp_path / "model"))
    arguments = damage.target_of(format, place)
    if format == "keras":
        path = place / "model.keras"
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        inner = io.BytesIO(members["model.weights.h5"])
        with h5py.File(inner, "r+") as file:
            edit(file, secret)
        write_zip(path, members | {"model.weights.h5": inner.getvalue()})
    else:
        with h5py.File(arguments.get("weights", arguments["source"]), "r+") as file:
            edit(file, secret)
    before = damage.contents(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        jm.load_target(**arguments)
    assert str(place) in str(error.value)
    assert damage.contents(tmp_path) == before


def test_a_heap_that_libhdf5_would_read_for_ever(samples, tmp_path):
    place = Path(shutil.copytree(samples / "h5-keras2", tmp_path / "model"))
    data = bytearray((place / "model.h5").read_bytes())
    heap = data.index(b"GCOL\x01")
    first = 16 + int.from_bytes(data[heap + 24 : heap + 32], "little")
    assert first > 16
    data[heap + 16 : heap + 32] = bytes(16)  # number 0, of size 0: the next object is itself
    (place / "model.h5").write_bytes(data)
    refused_unchanged(tmp_path, "heap of texts in it does not add up", source=place / "model.h5")


# --- ONNX ---------------------------------------------------------------------------------------


def value(name, shape, kind=TensorProto.FLOAT):
    return h.make_tensor_value_info(name, kind, shape)


def constant(name, content, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(content, dtype), name)


def outside(tensor, location):
    """The array kept in another file."""
    external_data_helper.set_external_data(tensor, str(location), offset=0, length=16)
    tensor.ClearField("raw_data")
    return tensor


def onnx_model(nodes, constants=(), functions=(), sparse=(), domains=()):
    """`y` of shape [n, 4] from `x` of shape [n, 4]."""
    graph = h.make_graph(
        nodes, "g", [value("x", ["n", 4])], [value("y", ["n", 4])], list(constants)
    )
    graph.sparse_initializer.extend(sparse)
    opsets = [h.make_opsetid("", 17), *(h.make_opsetid(d, 1) for d in domains)]
    model = h.make_model(graph, opset_imports=opsets, ir_version=8)
    model.functions.extend(functions)
    return model


def plus(name):
    return h.make_node("Add", ["x", name], ["y"])


def body(nodes, constants=(), outputs=(("h2", TensorProto.FLOAT, [None, 4]),)):
    return h.make_graph(
        nodes,
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("h", None)],
        [value("c2", [], TensorProto.BOOL), *(value(n, s, k) for n, k, s in outputs)],
        list(constants),
    )


def loop_model(count, nodes, constants=()):
    """A loop over x."""
    return onnx_model(
        [h.make_node("Loop", ["count", "", "x"], ["y"], body=body(nodes, constants))],
        [constant("count", count, np.int64)],
    )


def sized(op, *inputs, **attributes):
    """A constant that is as large as its inputs say, added to x."""
    names = [f"in{i}" for i in range(len(inputs))]
    kept = [constant(n, v, v.dtype) for n, v in zip(names, inputs, strict=True)]
    nodes = [
        h.make_node(op, names, ["big"], **attributes),
        h.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        h.make_node("Cast", ["sum"], ["small"], to=TensorProto.FLOAT),
    ]
    return onnx_model([*nodes, plus("small")], kept)


def sparse_tensor(dims, location=None):
    values = constant("w", np.ones(4))
    if location is not None:
        outside(values, location)
    return h.make_sparse_tensor(values, constant("w_at", [0, 1, 2, 3], np.int64), dims)


def doubling():
    nodes = [h.make_node("Concat", ["w", "w"], ["w0"], axis=0)]
    nodes += [h.make_node("Concat", [f"w{i}"] * 2, [f"w{i + 1}"], axis=0) for i in range(50)]
    nodes += [h.make_node("ReduceSum", ["w50"], ["sum"], keepdims=0), plus("sum")]
    return onnx_model(nodes, [constant("w", np.ones(1000))])


def broadcast():
    shapes = [(1,) * i + (1000,) + (1,) * (5 - i) for i in range(6)]
    kept = [constant(f"w{i}", np.ones(s)) for i, s in enumerate(shapes)]
    nodes = [h.make_node("Add", ["w0", "w1"], ["a1"])]
    nodes += [h.make_node("Add", [f"a{i}", f"w{i + 1}"], [f"a{i + 1}"]) for i in range(1, 5)]
    return onnx_model(
        [*nodes, h.make_node("ReduceSum", ["a5"], ["s"], keepdims=0), plus("s")], kept
    )


def late_growth():
    """Growth of what depends on the data."""
    nodes = [
        h.make_node("Expand", ["x", "to"], ["big"]),
        h.make_node("ReduceSum", ["big", "axes"], ["y"], keepdims=0),
    ]
    kept = [constant("to", [2**20, 2**20, 1, 1], np.int64), constant("axes", [0, 1], np.int64)]
    return onnx_model(nodes, kept)


def nested_functions(calls=3, depth=40):
    """Each calls the one before several times."""
    opset = [h.make_opsetid("", 17), h.make_opsetid("local", 1)]
    functions = [
        h.make_function("local", "f0", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"])], opset)
    ]
    for i in range(1, depth):
        names = ["a", *(f"t{j}" for j in range(calls - 1)), "b"]
        nodes = [
            h.make_node(f"f{i - 1}", [one], [other], domain="local")
            for one, other in zip(names[:-1], names[1:], strict=True)
        ]
        functions.append(h.make_function("local", f"f{i}", ["a"], ["b"], nodes, opset))
    node = h.make_node(f"f{depth - 1}", ["x"], ["y"], domain="local")
    return onnx_model([node], functions=functions, domains=["local"])


def endless_function():
    opset = [h.make_opsetid("", 17), h.make_opsetid("local", 1)]
    node = h.make_node("f", ["a"], ["b"], domain="local")
    function = h.make_function("local", "f", ["a"], ["b"], [node], opset)
    call = h.make_node("f", ["x"], ["y"], domain="local")
    return onnx_model([call], functions=[function], domains=["local"])


def counting():
    """A loop that ends when its counter says so, much later."""
    nodes = [
        h.make_node("Less", ["i", "end"], ["c2"]),
        h.make_node("Identity", ["h"], ["h2"]),
    ]
    return loop_model(2**60, nodes, [constant("end", 2**50, np.int64)])


def loops_in_loops(depth=6):
    nodes = [h.make_node("Identity", ["c"], ["c2"]), h.make_node("Add", ["h", "one"], ["h2"])]
    graph = body(nodes, [constant("one", 1.0)])
    for i in range(depth):
        inner = h.make_node("Loop", [f"n{i}", "", "h"], ["h2"], body=graph)
        kept = [constant(f"n{i}", 1000, np.int64)]
        graph = body([h.make_node("Identity", ["c"], ["c2"]), inner], kept)
    outer = h.make_node("Loop", ["n", "", "w"], ["sum"], body=graph)
    kept = [constant("n", 1000, np.int64), constant("w", np.ones(4))]
    return onnx_model([outer, plus("sum")], kept)


def claims(dims):
    tensor = constant("w", np.ones(4))
    tensor.dims[:] = dims
    return onnx_model([plus("w")], [tensor])


SECRET = "in .*outside its own folder"
LARGE = "larger than any model needs"
integers = partial(np.asarray, dtype=np.int64)
ONNX = {
    "up": (
        lambda s: onnx_model([plus("w")], [outside(constant("w", np.ones(4)), f"../{s}")]),
        SECRET,
    ),
    "absolute": (
        lambda s: onnx_model([plus("w")], [outside(constant("w", np.ones(4)), f"/etc/{s}")]),
        SECRET,
    ),
    "link": (
        lambda s: onnx_model([plus("w")], [outside(constant("w", np.ones(4)), "link")]),
        SECRET,
    ),
    "sparse": (lambda s: onnx_model([plus("w")], sparse=[sparse_tensor([4], f"../{s}")]), SECRET),
    "attribute": (
        lambda s: onnx_model(
            [
                h.make_node(
                    "Constant", [], ["w"], value=outside(constant("w", np.ones(4)), f"../{s}")
                ),
                plus("w"),
            ]
        ),
        SECRET,
    ),
    "in-loop": (
        lambda s: loop_model(
            2,
            [h.make_node("Identity", ["c"], ["c2"]), h.make_node("Add", ["h", "w"], ["h2"])],
            [outside(constant("w", np.ones(4)), f"../{s}")],
        ),
        SECRET,
    ),
    "domain": (
        lambda s: onnx_model(
            [h.make_node("Run", ["x"], ["y"], domain="com.evil")], domains=["com.evil"]
        ),
        r"does not know: com\.evil\.Run",
    ),
    "claims": (lambda s: claims([2**40]), "cannot|damaged|reshape"),
    "claims-product": (lambda s: claims([2**32, 2**32]), "cannot|damaged|reshape"),
    "claims-negative": (lambda s: claims([-1, -7]), "cannot|damaged|reshape|negative|unknown"),
    "claims-sparse": (
        lambda s: onnx_model([plus("w")], sparse=[sparse_tensor([2**20, 2**20])]),
        LARGE,
    ),
    "constant": (lambda s: sized("ConstantOfShape", integers([2**20, 2**20])), LARGE),
    "constant-less": (lambda s: sized("ConstantOfShape", integers([2**33])), LARGE),
    "expand": (lambda s: sized("Expand", np.ones(1), integers([2**40])), LARGE),
    "tile": (lambda s: sized("Tile", np.ones(1), integers([2**40])), LARGE),
    "range": (lambda s: sized("Range", integers(0), integers(2**40), integers(1)), LARGE),
    "one-hot": (lambda s: sized("OneHot", integers([0]), integers(2**40), integers([0, 1])), LARGE),
    "pad": (lambda s: sized("Pad", np.ones(1, np.float32), integers([0, 2**40])), LARGE),
    "resize": (
        lambda s: sized(
            "Resize",
            np.ones((1, 1, 1, 1), np.float32),
            np.ones(0, np.float32),
            np.float32([1, 1, 2**20, 2**20]),
        ),
        "cannot|larger",
    ),
    "doubling": (lambda s: doubling(), LARGE),
    "broadcast": (lambda s: broadcast(), LARGE),
    "late-growth": (lambda s: late_growth(), LARGE),
    "functions": (lambda s: nested_functions(), "too many"),
    "endless": (lambda s: endless_function(), "calls itself"),
    "counting": (lambda s: counting(), "steps|operations"),
    "loops": (lambda s: loops_in_loops(), "loops within loops|operations"),
    "circle": (
        lambda s: onnx_model(
            [
                h.make_node("Relu", ["x"], ["a"]),
                h.make_node("Identity", ["a"], ["a"]),
                h.make_node("Identity", ["a"], ["y"]),
            ]
        ),
        "again",
    ),
}


@pytest.mark.parametrize("kind", ONNX)
def test_onnx(loader, tmp_path, kind):
    make, message = ONNX[kind]
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    (path.parent / "link").symlink_to(tmp_path / "secret")
    path.write_bytes(make("secret").SerializeToString())
    before = damage.contents(tmp_path, loader.scratch)
    answer = loader.load(source=str(path))
    assert answer.outcome == "ValueError", answer
    assert re.search(message, answer.message), answer
    assert str(path) in answer.message
    assert answer.grown < 2**30
    assert damage.contents(tmp_path, loader.scratch) == before


def test_onnx_that_is_only_unusual(loader, tmp_path):
    """A long chain, a long loop: no attack, and it loads."""
    names = ["x", *(f"t{i}" for i in range(1500)), "y"]
    chain = [h.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
    nodes = [h.make_node("Identity", ["c"], ["c2"]), h.make_node("Mul", ["h", "w"], ["h2"])]
    (tmp_path / "beside").write_bytes(np.ones(4, np.float32).tobytes())
    for model in (
        onnx_model(chain),
        loop_model(20_000, nodes, [constant("w", 1.0)]),
        nested_functions(2, 5),
        onnx_model([plus("w")], [outside(constant("w", np.ones(4)), "beside")]),
    ):
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        answer = loader.load(60, source=str(path))
        assert answer.outcome == "target", answer


# --- SavedModels --------------------------------------------------------------------------------


def tf_module(tf, step, name="serve"):
    """A module that computes x @ w and does `step` with it on the way, in a function of a name."""
    module = tf.Module()
    module.w = tf.Variable(np.ones((4, 3), np.float32), name="w")

    def serve(x):
        return {"scores": step(tf, module, x @ module.w)}

    serve.__name__ = name
    return module, tf.function(serve, input_signature=[tf.TensorSpec([None, 4], tf.float32)])


def then(effect):
    """An effect, and then what was computed."""

    def step(tf, module, z):
        with tf.control_dependencies([effect(tf)]):
            return tf.identity(z)

    return step


def conditional(tf, module, z, canary):
    def write():
        with tf.control_dependencies([tf.io.write_file(canary, "x")]):
            return tf.identity(z)

    return tf.cond(tf.reduce_sum(z) > 1e9, write, lambda: z)


def table(tf, module, z, vocabulary):
    initializer = tf.lookup.TextFileInitializer(
        vocabulary, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
    )  # fmt: skip
    with tf.init_scope():
        module.table = tf.lookup.StaticHashTable(initializer, -1)
    return z + tf.cast(module.table.lookup(tf.constant("a")), tf.float32)


def resource(tf, module, z, canary, used=True):
    """What is done when the model is loaded, if its function uses it."""

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self):
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="r")

        def _initialize(self):
            tf.io.write_file(canary, "x")

        def _destroy_resource(self):
            pass

    with tf.init_scope():
        module.resource = Resource()
        handle = module.resource.resource_handle
    if not used:
        return z
    return z + 0.0 * tf.cast(tf.raw_ops.VarIsInitializedOp(resource=handle), tf.float32)


def save_v2(tf, canary):
    return tf.raw_ops.SaveV2(
        prefix=canary, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
    )


def restore_v2(tf, canary):
    return tf.raw_ops.RestoreV2(
        prefix=canary, tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
    )[0]


SAVED = {
    "py_function": (lambda c: then(lambda tf: tf.py_function(print, [1], [])), "EagerPyFunc"),
    "numpy_function": (
        lambda c: then(lambda tf: tf.numpy_function(float, [1.0], tf.double)),
        "PyFunc",
    ),
    "stateless": (
        lambda c: then(lambda tf: tf.numpy_function(float, [1.0], tf.double, stateful=False)),
        "PyFuncStateless",
    ),
    "read": (lambda c: then(lambda tf: tf.io.read_file("/etc/passwd")), "ReadFile"),
    "glob": (lambda c: then(lambda tf: tf.io.matching_files("/etc/*")), "MatchingFiles"),
    "write": (lambda c: then(lambda tf: tf.io.write_file(c, "x")), "WriteFile"),
    "branch": (lambda c: partial(conditional, canary=c), "WriteFile"),
    "print": (lambda c: then(lambda tf: tf.print(1, output_stream=f"file://{c}")), "PrintV2"),
    "save": (lambda c: then(lambda tf: save_v2(tf, c)), "SaveV2"),
    "restore": (lambda c: then(lambda tf: restore_v2(tf, c)), "RestoreV2"),
    "merge": (
        lambda c: then(
            lambda tf: tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=[c], destination_prefix=c, delete_old_dirs=True
            )
        ),
        "MergeV2Checkpoints",
    ),
    "table": (lambda c: partial(table, vocabulary=c + ".txt"), "InitializeTableFromTextFileV2"),
    "on-load": (lambda c: partial(resource, canary=c), "WriteFile"),
    "dataset": (
        lambda c: then(
            lambda tf: tf.raw_ops.TextLineDataset(
                filenames="/etc/passwd", compression_type="", buffer_size=1
            )
        ),
        "TextLineDataset",
    ),
    "abort": (lambda c: then(lambda tf: tf.raw_ops.Abort()), "Abort"),
    "abort-as-success": (
        lambda c: then(lambda tf: tf.raw_ops.Abort(exit_without_error=True)),
        "Abort",
    ),
    "vocabulary": (
        lambda c: then(
            lambda tf: tf.raw_ops.GenerateVocabRemapping(
                new_vocab_file="/etc/passwd",
                old_vocab_file="/etc/group",
                new_vocab_offset=0,
                num_new_vocab=1,
            )[0]
        ),
        "GenerateVocabRemapping",
    ),
    "descriptor": (
        lambda c: then(
            lambda tf: tf.raw_ops.DecodeProtoV2(
                bytes=[b""],
                message_type="M",
                field_names=["a"],
                output_types=[tf.int32],
                descriptor_source=c,
            )[0]
        ),
        "DecodeProtoV2",
    ),
    "immutable": (
        lambda c: then(
            lambda tf: tf.raw_ops.ImmutableConst(
                dtype=tf.uint8, shape=[4], memory_region_name="/etc/passwd"
            )
        ),
        "ImmutableConst",
    ),
}
DISGUISED = [(kind, name) for kind in ("write", "save", "restore") for name in ("save", "restore")]


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "serve") for kind in SAVED), *((k, f"_traced_{name}") for k, name in DISGUISED)],
)
def test_saved_models(canary, tmp_path, kind, name):
    """TensorFlow's own functions that save and restore have the last two names."""
    tf = frameworks.tensorflow("a test")
    make, operation = SAVED[kind]
    (tmp_path / "canary.txt").write_text("a\nb\n")
    saved_module(tf, tmp_path / "m", make(str(canary)), name)
    canary.unlink(missing_ok=True)  # what is done on loading is done on saving too
    text = text_of(tmp_path / "m")
    assert f"__inference_{name}_" in text
    message = rf"operations that run code.*\b{operation}\b.*trust=True"
    refused_unchanged(tmp_path, message, source=tmp_path / "m")


def saved_module(tf, folder, step, name="serve"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, serve = tf_module(tf, step, name)
        signature = serve.get_concrete_function()
        tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})


def text_of(folder):
    return (folder / "saved_model.pb").read_bytes().decode("latin-1")


def test_a_saved_model_with_tables_random_numbers_and_branches_loads(tmp_path):
    """Nothing of this leaves the process, though TensorFlow says that it has state."""
    tf = frameworks.tensorflow("a test")

    def step(tf, module, z):
        tf.debugging.assert_less(tf.reduce_sum(z), 1e9)
        return z + 0.0 * tf.random.uniform([])

    saved_module(tf, tmp_path / "m", step)
    names = operations_in(tmp_path / "m")
    assert {"RandomUniform", "Assert"} <= names
    check_graph(names, "it")
    saved_module(tf, tmp_path / "plain", lambda tf, module, z: z)
    assert jm.load_target(tmp_path / "plain").spec.n_classes == 3


def operations_in(folder):
    return set(parts.operations(parts.served(read(folder)[0])))


def old_saved_model(tf, folder, effect=None):
    """As TensorFlow 1 writes them: a graph, no objects."""
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = v1.placeholder(tf.float32, [None, 4], "x")
        w = v1.get_variable("w", [4, 3], use_resource=True)
        scores = tf.matmul(x, w, name="scores")
        main = None if effect is None else tf.group(effect(tf))
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"scores": scores})
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, main_op=main
        )
        builder.save()


@pytest.mark.parametrize("kind", ["write", "read", "save", "restore", "print"])
def test_old_saved_models(canary, tmp_path, kind):
    tf = frameworks.tensorflow("a test")
    c = str(canary)
    effects = {
        "write": lambda tf: tf.io.write_file(c, "x"),
        "read": lambda tf: tf.io.read_file("/etc/passwd"),
        "save": lambda tf: save_v2(tf, c),
        "restore": lambda tf: restore_v2(tf, c),
        "print": lambda tf: tf.print(1, output_stream=f"file://{c}"),
    }
    old_saved_model(tf, tmp_path / "m", effects[kind])
    refused_unchanged(tmp_path, "operations that run code", source=tmp_path / "m")


def test_an_old_saved_model_restores_and_loads(tmp_path):
    tf = frameworks.tensorflow("a test")
    old_saved_model(tf, tmp_path / "m")
    assert {"RestoreV2", "SaveV2"} <= {node.op for node in read(tmp_path / "m")[0].graph_def.node}
    target = jm.load_target(tmp_path / "m")
    assert target.spec.n_classes == 3 and target.spec.source.difference < 1e-5


def test_a_restore_from_elsewhere_is_no_restore(canary, tmp_path):
    """The saver's own node, but with a file name that is not the one fed to it."""
    tf = frameworks.tensorflow("a test")
    old_saved_model(tf, tmp_path / "m")
    path = tmp_path / "m" / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = proto.meta_graphs[0].graph_def
    node = next(node for node in graph.node if node.op == "RestoreV2")
    elsewhere = graph.node.add()
    elsewhere.CopyFrom(next(n for n in graph.node if n.name == node.input[0]))
    elsewhere.name = "elsewhere"
    node.input[0] = "elsewhere"
    path.write_bytes(proto.SerializeToString())
    refused_unchanged(tmp_path, "RestoreV2", source=tmp_path / "m")


# --- every operation, and every place for one -----------------------------------------------------


def registry():
    """TensorFlow's operations, and whether it says that they have state."""
    packed = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    return {op.name: op.is_stateful for op in op_def_pb2.OpList.FromString(packed).op}


def add_function(meta, name, op="Identity"):
    """A function of a graph, that does one thing."""
    function = meta.graph_def.library.function.add()
    function.signature.name = name
    function.node_def.add(name="node", op=op)
    return function


def add_object(meta, parent, name, *functions, inputs=()):
    """An object of a graph below another; a function, if it is given the names of some."""
    nodes = meta.object_graph_def.nodes
    nodes[parent].children.add(local_name=name, node_id=len(nodes))
    node = nodes.add()
    node.user_object.identifier = "_generic_user_object"
    node.user_object.version.producer = 1
    if functions:
        node.function.concrete_functions.extend(functions)
    for one in functions:
        meta.object_graph_def.concrete_functions[one].bound_inputs.extend(inputs)
    return len(nodes) - 1


def graph_of_objects(initializer="NoOp"):
    """A graph whose served function uses an object that is created and initialised on loading."""
    meta = meta_graph_pb2.MetaGraphDef()
    meta.object_graph_def.nodes.add().user_object.identifier = "_generic_user_object"
    table = add_object(meta, 0, "table")
    meta.object_graph_def.nodes[table].resource.device = ""
    for name in ("_create_resource", "_initialize", "_destroy_resource"):
        add_function(meta, f"{name}_0", initializer if name == "_initialize" else "NoOp")
        add_object(meta, table, name, f"{name}_0")
    add_function(meta, "serve")
    signatures = add_object(meta, 0, "signatures")
    meta.object_graph_def.nodes[signatures].user_object.identifier = "signature_map"
    add_object(meta, signatures, "serving_default", "serve", inputs=[table])
    return meta


def function_of(meta, name):
    return next(f for f in meta.graph_def.library.function if f.signature.name == name)


def refused_in(meta):
    return off_the_list(parts.operations(parts.served(meta)))


def test_each_operation_in_an_initialiser_is_on_the_list_or_refused():
    names = registry()
    assert len(names) > 1500
    for name in names:
        expected = [] if name in ALLOWED else [name]
        assert refused_in(graph_of_objects(name)) == expected, name
    assert refused_in(graph_of_objects("OfAnotherPackage")) == ["OfAnotherPackage"]


def test_operations_on_the_list():
    names = registry()
    stateful = {name for name in ALLOWED if names.get(name)}
    assert len(stateful) > 50 and stateful <= STATEFUL.keys()
    assert all(len(reason) > 10 for reason in STATEFUL.values())
    version = frameworks.tensorflow("a test").__version__
    if tuple(map(int, version.split(".")[:2])) >= (2, 21):  # older ones lack some
        assert names.keys() >= ALLOWED
    outside = re.compile(
        r".*(File|Reader|Dataset|Iterator|Summary|Rpc|Session|PyFunc|TPU|Collective|Nccl|Send|Recv"
        r"|Queue|Barrier|Stage|Dump|Print|Debug|Sleep|Abort|Proto|Decode|Parse|Remote|Launch|Custom"
        r"|Save|Restore|Merge.+|VocabRemap|ImmutableConst|LoadAnd|Unigram|Skipgram|Configuration).*"
    )
    assert sum(bool(outside.fullmatch(name)) for name in names) > 400
    harmless = {"ShardedFilename", "ShardedFilespec"}  # they make names
    harmless |= {"CTCBeamSearchDecoder", "CTCGreedyDecoder"}  # of what a network says
    assert {name for name in ALLOWED if outside.fullmatch(name)} == harmless
    for name in ("MatMul", "Conv2D", "Einsum", "StatelessWhile", "ResizeBilinear", "VarHandleOp"):
        assert name in ALLOWED


def in_served(meta):
    function_of(meta, "serve").node_def.add(op="WriteFile")


def in_call(meta):
    add_function(meta, "__inference__traced_save_1", "WriteFile")
    node = function_of(meta, "serve").node_def.add(op="StatefulPartitionedCall")
    node.attr["f"].func.name = "__inference__traced_save_1"


def in_branch(meta):
    add_function(meta, "evil", "WriteFile")
    node = function_of(meta, "serve").node_def.add(op="StatelessCase")
    node.attr["branches"].list.func.add(name="evil")


def in_function_of_a_function(meta):
    add_function(meta, "evil", "WriteFile")
    node = function_of(meta, "serve").node_def.add(op="PartitionedCall")
    node.attr["f"].func.name = "serve"
    node.attr["f"].func.attr["a"].func.attr["b"].list.func.add(name="evil")


def by_name(meta):
    add_function(meta, "evil", "WriteFile")
    function_of(meta, "serve").node_def.add(op="evil")


def as_an_operation(meta):
    add_function(meta, "Identity", "WriteFile")


def named_like_one(meta):
    add_function(meta, "WriteFile")
    function_of(meta, "serve").node_def.add(op="WriteFile")


def of_resource(name):
    def hide(meta):
        function_of(meta, f"{name}_0").node_def.add(op="WriteFile")

    return hide


def of_checkpoint(kind):
    def hide(meta):
        add_function(meta, "evil", "WriteFile")
        pair = meta.object_graph_def.nodes[1].saveable_objects["a"]
        setattr(pair, kind, add_object(meta, 0, "save", "evil"))

    return hide


def of_dependency(meta):
    add_function(meta, "evil", "WriteFile")
    number = add_object(meta, 0, "other", "evil")
    meta.object_graph_def.nodes[1].dependencies.add(local_name="d", node_id=number)


def of_captured(meta):
    add_function(meta, "evil", "WriteFile")
    number = add_object(meta, 0, "other")
    meta.object_graph_def.nodes[number].captured_tensor.concrete_function = "evil"
    meta.object_graph_def.concrete_functions["serve"].bound_inputs.append(number)


REACHED = {
    "served": in_served,
    "call": in_call,
    "branch": in_branch,
    "function-of-a-function": in_function_of_a_function,
    "by-name": by_name,
    "as-an-operation": as_an_operation,
    "named-like-one": named_like_one,
    **{
        name: of_resource(name) for name in ("_create_resource", "_initialize", "_destroy_resource")
    },
    "save": of_checkpoint("save_function"),
    "restore": of_checkpoint("restore_function"),
    "dependency": of_dependency,
    "captured": of_captured,
}


@pytest.mark.parametrize("place", REACHED)
def test_places_that_are_looked_at(place):
    meta = graph_of_objects()
    assert refused_in(meta) == []
    REACHED[place](meta)
    assert refused_in(meta) == ["WriteFile"]


def other_signature(meta):
    add_function(meta, "evil", "WriteFile")
    number = next(
        r.node_id for r in meta.object_graph_def.nodes[0].children if "sig" in r.local_name
    )
    add_object(meta, number, "other", "evil")


def attribute(parent, name):
    def hide(meta):
        add_function(meta, "evil", "WriteFile")
        add_object(meta, parent % len(meta.object_graph_def.nodes), name, "evil")

    return hide


def other_table(meta):
    add_function(meta, "evil", "WriteFile")
    number = add_object(meta, 0, "unused")
    meta.object_graph_def.nodes[number].resource.device = ""
    add_object(meta, number, "_initialize", "evil")
    meta.object_graph_def.nodes[number].saveable_objects["a"].restore_function = number + 1


def implementation(meta):
    for name in ("serve", "evil"):
        function = add_function(meta, "evil", "WriteFile") if name == "evil" else None
        function = function or function_of(meta, "serve")
        function.attr["api_implements"].s = b"lstm"
        function.attr["experimental_implements"].s = b"lstm"


def registered_gradient(meta):
    add_function(meta, "evil", "WriteFile")
    library = meta.graph_def.library
    library.registered_gradients.add(gradient_func="evil", registered_op_type="evil-type")
    library.gradient.add(function_name="serve", gradient_func="evil")
    function_of(meta, "serve").node_def[0].attr["_gradient_op_type"].s = b"evil-type"
    meta.object_graph_def.concrete_functions["evil"].SetInParent()


def in_collections(meta):
    meta.graph_def.node.add(name="evil", op="WriteFile")
    meta.collection_def["saved_model_main_op"].node_list.value.append("evil")
    meta.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "evil"


LEFT_OUT = {
    "signature": other_signature,
    "attribute": attribute(0, "save"),
    "method-of-the-loader's": attribute(0, "_gather_saveables_for_checkpoint"),
    "method-of-the-function": attribute(-1, "_call_flat"),
    "method-of-the-table": attribute(1, "_restore_from_tensors"),
    "table": other_table,
    "implementation": implementation,
    "gradient": registered_gradient,
    "collections": in_collections,
}


@pytest.mark.parametrize("place", LEFT_OUT)
def test_places_that_tensorflow_is_not_given(place):
    meta = graph_of_objects()
    LEFT_OUT[place](meta)
    assert b"WriteFile" in meta.SerializeToString()
    found = parts.served(meta)
    assert b"WriteFile" not in found.SerializeToString()
    assert off_the_list(parts.operations(found)) == []
    kept = {function.signature.name for function in found.graph_def.library.function}
    assert kept == {"serve", "_create_resource_0", "_initialize_0", "_destroy_resource_0"}


def old_graph():
    """A graph of TensorFlow 1: y of x and a variable, and a saver."""
    meta = meta_graph_pb2.MetaGraphDef()
    for name, op, *inputs in [
        ("x", "Placeholder"),
        ("w", "VarHandleOp"),
        ("zeros", "Const"),
        ("init", "AssignVariableOp", "w", "zeros"),
        ("value", "ReadVariableOp", "w"),
        ("y", "MatMul", "x", "value"),
        ("save/Const", "Const"),
        ("save/restore", "RestoreV2", "save/Const"),
        ("save/assign", "AssignVariableOp", "w", "save/restore"),
        ("save/restore_all", "NoOp", "^save/assign"),
        ("save/save", "SaveV2", "save/Const", "value"),
        ("path", "Const"),
        ("evil", "WriteFile", "path", "path"),
        ("unused", "Identity", "evil"),
    ]:
        meta.graph_def.node.add(name=name, op=op, input=inputs)
    meta.saver_def.restore_op_name = "save/restore_all"
    meta.saver_def.save_tensor_name = "save/save:0"
    meta.saver_def.filename_tensor_name = "save/Const:0"
    variable = variable_pb2.VariableDef(
        variable_name="w:0", initializer_name="init", snapshot_name="value:0"
    )
    meta.collection_def["variables"].bytes_list.value.append(variable.SerializeToString())
    meta.signature_def["serving_default"].inputs["x"].name = "x:0"
    meta.signature_def["serving_default"].outputs["y"].name = "y:0"
    meta.signature_def["other"].outputs["y"].name = "unused:0"
    meta.collection_def["train_op"].node_list.value.append("evil")
    return meta


def node_of(meta, name):
    return next(node for node in meta.graph_def.node if node.name == name)


def through_a_variable(meta):
    variable = variable_pb2.VariableDef(
        variable_name="w:0", initializer_name="evil", snapshot_name="value:0"
    )
    meta.collection_def["local_variables"].bytes_list.value.append(variable.SerializeToString())


def through_a_function(meta):
    add_function(meta, "called", "WriteFile")
    node_of(meta, "y").op = "called"


OLD = {
    **{
        key: lambda m, key=key: m.collection_def[key].node_list.value.append("evil")
        for key in ("saved_model_main_op", "legacy_init_op", "table_initializer")
    },
    "init-signature": lambda m: (
        m.signature_def["__saved_model_init_op"]
        .outputs["__saved_model_init_op"]
        .MergeFrom(meta_graph_pb2.TensorInfo(name="evil"))
    ),
    "input": lambda m: node_of(m, "y").input.append("unused:0"),
    "control": lambda m: node_of(m, "x").input.append("^evil"),
    "restore": lambda m: node_of(m, "save/restore_all").input.append("^evil"),
    "variable": through_a_variable,
    "function": through_a_function,
    "asset": lambda m: m.asset_file_def.add().tensor_info.MergeFrom(
        meta_graph_pb2.TensorInfo(name="unused:0")
    ),
}


@pytest.mark.parametrize("place", OLD)
def test_places_in_old_graphs(place):
    meta = old_graph()
    assert refused_in(meta) == []
    assert b"WriteFile" not in parts.served(meta).SerializeToString()
    OLD[place](meta)
    assert refused_in(meta) == ["WriteFile"]


def test_what_restores_an_old_graph_serves_for_nothing_else():
    meta = old_graph()
    node_of(meta, "y").input[1] = "save/restore"
    assert refused_in(meta) == ["RestoreV2"]


# --- what only other signatures reach -------------------------------------------------------------


def trained_on_a_phone(tf, folder, canary):
    """Its served function, beside functions that write, and read a number that is a shape."""
    number = canary.with_name("number")
    number.write_text("2")

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(np.ones((4, 3), np.float32))

        @tf.function
        def infer(self, x):
            return {"scores": tf.nn.softmax(x @ self.w)}

        @tf.function
        def save(self, path):
            with tf.control_dependencies([tf.io.write_file(str(canary), path)]):
                return {"path": tf.identity(path)}

        @tf.function
        def shape(self, x):
            rows = tf.strings.to_number(tf.io.read_file(str(number)), tf.int32)
            return {"x": tf.reshape(x, [rows, -1])}

    module = Module()
    arrays, path = tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([], tf.string)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signatures = {
            "serving_default": module.infer.get_concrete_function(arrays),
            "save": module.save.get_concrete_function(path),
            "shape": module.shape.get_concrete_function(arrays),
        }
        tf.saved_model.save(module, str(folder), signatures=signatures)
    number.write_text("3")
    return module


def test_functions_of_other_signatures_are_neither_run_nor_built(canary, tmp_path):
    """TensorFlow computes what is constant in all that it builds: reading a file, for a shape."""
    tf = frameworks.tensorflow("a test")
    module = trained_on_a_phone(tf, tmp_path / "m", canary)
    with pytest.raises(ValueError, match="are 3 and 2"):
        tf.saved_model.load(str(tmp_path / "m"))
    before = damage.contents(tmp_path)
    target = jm.load_target(tmp_path / "m")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = jax.nn.softmax(target(x).logits)
    np.testing.assert_allclose(found, module.infer(x)["scores"], atol=1e-6)
    assert damage.contents(tmp_path) == before


def test_what_is_beside_the_graph_is_not_read(canary, tmp_path):
    tf = frameworks.tensorflow("a test")
    saved_module(tf, tmp_path / "m", lambda tf, module, z: z)
    saved_module(tf, tmp_path / "evil", partial(resource, canary=str(canary)))
    canary.unlink(missing_ok=True)
    evil = saved_model_pb2.SavedModel.FromString((tmp_path / "evil/saved_model.pb").read_bytes())
    (tmp_path / "m/saved_model.pbtxt").write_text(str(evil))
    (tmp_path / "m/fingerprint.pb").write_bytes(b"\xff" * 20)
    shutil.copytree(tmp_path / "evil", tmp_path / "m/assets.extra")
    assert jm.load_target(tmp_path / "m").spec.n_classes == 3


@pytest.mark.parametrize("tags", [["serve"], ["other"]])
def test_a_second_graph(canary, tmp_path, tags):
    tf = frameworks.tensorflow("a test")
    old_saved_model(tf, tmp_path / "m")
    old_saved_model(tf, tmp_path / "evil", lambda tf: tf.io.write_file(str(canary), "x"))
    canary.unlink(missing_ok=True)
    first, second = (
        saved_model_pb2.SavedModel.FromString((tmp_path / name / "saved_model.pb").read_bytes())
        for name in ("m", "evil")
    )
    second.meta_graphs[0].meta_info_def.tags[:] = tags
    first.meta_graphs.insert(0, second.meta_graphs[0])
    (tmp_path / "m/saved_model.pb").write_bytes(first.SerializeToString())
    if tags == ["serve"]:
        refused_unchanged(tmp_path, "2 graphs", source=tmp_path / "m")
    else:
        assert jm.load_target(tmp_path / "m").spec.n_classes == 3


def test_a_table_that_the_served_function_does_not_use(canary, tmp_path):
    tf = frameworks.tensorflow("a test")
    saved_module(tf, tmp_path / "m", partial(resource, canary=str(canary), used=False))
    canary.unlink(missing_ok=True)
    assert jm.load_target(tmp_path / "m").spec.n_classes == 3


def test_functions_of_layers(samples, canary, tmp_path):
    """Where those of the layers do more than the served one, only that is called."""
    place = Path(shutil.copytree(samples / "saved-model" / "model", tmp_path / "m"))
    assert jm.load_target(place).spec.source.route == "tf-keras"
    proto = saved_model_pb2.SavedModel.FromString((place / "saved_model.pb").read_bytes())
    meta = proto.meta_graphs[0]
    signature, layers = (
        {function.signature.name for function in part(meta).graph_def.library.function}
        for part in (parts.served, parts.of_layers)
    )
    assert layers - signature and not signature - layers - {
        name for name in signature if "sig" in name
    }
    for name in layers - signature:
        function = function_of(meta, name)
        node = function.node_def.add(name="evil_path", op="Const")
        node.attr["dtype"].type = 7
        node.attr["value"].tensor.dtype = 7
        node.attr["value"].tensor.tensor_shape.SetInParent()
        node.attr["value"].tensor.string_val.append(str(canary).encode())
        function.node_def.add(name="evil", op="WriteFile", input=["evil_path:output:0"] * 2)
        function.signature.control_output.append("evil")
        function.control_ret["evil"] = "evil"
        function.signature.is_stateful = True
    (place / "saved_model.pb").write_bytes(proto.SerializeToString())
    target = jm.load_target(place)
    assert target.spec.source.route == "saved-model" and target.spec.source.difference < 1e-5


def test_trust_opens_what_the_list_refuses(canary, tmp_path):
    tf = frameworks.tensorflow("a test")
    print_there = then(lambda tf: tf.print("called", output_stream=f"file://{canary}"))
    saved_module(tf, tmp_path / "m", print_there)
    refused_unchanged(tmp_path, "PrintV2.*trust=True", source=tmp_path / "m")
    target = jm.load_target(tmp_path / "m", trust=True)
    assert target.spec.n_classes == 3 and target.spec.source.difference < 1e-5
    assert canary.read_text().startswith("called")
    canary.unlink()


@pytest.mark.parametrize("what", ["variables", "variables/variables.index", "saved_model.pb"])
def test_links_out_of_a_saved_model(samples, tmp_path, what):
    shutil.copytree(samples / "saved-model" / "model", tmp_path / "elsewhere")
    shutil.copytree(samples / "saved-model" / "model", tmp_path / "m")
    place = tmp_path / "m" / what
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(tmp_path / "elsewhere" / what)
    refused_unchanged(tmp_path, "link to .*elsewhere.*cp -rL", source=tmp_path / "m")


@pytest.mark.parametrize("kind", ["lambda", "vocabulary"])
def test_layers_in_saved_models(samples, canary, tmp_path, kind):
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "lambda":
            parts = [layers.Lambda(lambda x: 2 * x, name="evil")]
        else:
            parts = [layers.IntegerLookup(vocabulary=[1, 2, 3], name="evil")]
        dtype = "float32" if kind == "lambda" else "int64"
        model = tf_keras.Sequential(
            [layers.InputLayer((4,), dtype=dtype), *parts, layers.Dense(3, activation="softmax")]
        )
        model.save(tmp_path / "m", save_format="tf")
    if kind == "vocabulary":
        path = tmp_path / "m" / "keras_metadata.pb"
        metadata = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes())
        for node in metadata.nodes:
            node.metadata = re.sub(
                r'"vocabulary": (\[[^\]]*\]|null|\{[^}]*\})',
                '"vocabulary": "/etc/passwd"',
                node.metadata,
            )
        path.write_bytes(metadata.SerializeToString())
    message = CODE if kind == "lambda" else READS
    refused_unchanged(tmp_path, message, source=tmp_path / "m")


# --- layers of one's own, and Keras 1 -----------------------------------------------------------


def scaled(keras):
    """A custom layer with a weight, for either Keras."""

    class Scaled(keras.layers.Layer):
        def __init__(self, by=2.0, **kwargs):
            super().__init__(**kwargs)
            self.by = by

        def build(self, shape):
            self.w = self.add_weight(name="w", shape=(shape[-1],), initializer="ones")
            super().build(shape)

        def call(self, x):
            return self.by * self.w * x

        def get_config(self):
            return {**super().get_config(), "by": self.by}

    return Scaled


CUSTOM = ["keras", "h5", "json", "h5-keras2", "json-keras2", "saved-model"]


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("format", CUSTOM)
def test_custom_layers(tmp_path, format, functional):
    old = format in ("h5-keras2", "json-keras2", "saved-model")
    framework = importlib.import_module("tf_keras" if old else "keras")
    layers, kind = framework.layers, scaled(framework)
    path = tmp_path / ("m" if format == "saved-model" else f"m.{format.partition('-')[0]}")
    arguments = {"source": path}
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        start = layers.InputLayer((4,)) if old else framework.Input((4,))
        # tf_keras opens the older files, because of this
        after = layers.Dense(3, activation="hard_sigmoid" if old else "tanh")
        parts = [kind(name="mine"), after, layers.Softmax()]
        if functional:
            x = z = framework.Input((4,))
            for part in parts:
                z = part(z)
            model = framework.Model(x, z)
        else:
            model = framework.Sequential([start, *parts])
        if format.startswith("json"):
            path.write_text(model.to_json())
            arguments["weights"] = tmp_path / "m.weights.h5"
            model.save_weights(arguments["weights"])
        elif format == "saved-model":
            model.save(path, save_format="tf")
        else:
            model.save(path)
        if format != "saved-model":
            message = r"'mine' \(\S*Scaled\).*custom_objects=\{\"Scaled\": \.\.\.\}"
            refused_unchanged(tmp_path, message, **arguments)
        target = jm.load_target(**arguments, custom_objects={"Scaled": kind})
    assert target.spec.variables[0] == "mine/w"
    assert target.spec.source.difference < 1e-5
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        expected = np.asarray(model(x))
    np.testing.assert_allclose(jax.nn.softmax(target(x).logits), expected, atol=1e-6)


def test_custom_layers_of_a_saved_model_are_in_its_graph(tmp_path):
    """So it opens without them too."""
    tf_keras = importlib.import_module("tf_keras")
    layers = tf_keras.layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tf_keras.Sequential(
            [
                layers.InputLayer((4,)),
                scaled(tf_keras)(name="mine"),
                layers.Dense(3),
                layers.Softmax(),
            ]
        )
        model.save(tmp_path / "m", save_format="tf")
        target = jm.load_target(tmp_path / "m")
    assert len(target.spec.variables) == 3 and target.spec.source.difference < 1e-5


def keras_1(path: Path) -> Path:
    """A file as Keras 1.2.2 wrote it, with the old names of layers and arguments."""
    random = np.random.default_rng(0)
    shared = {"init": "glorot_uniform", "activation": "relu", "bias": True, "trainable": True}
    layers = [
        {
            "class_name": "Convolution2D",
            "config": {
                **shared, "name": "convolution2d_1", "nb_filter": 2, "nb_row": 3, "nb_col": 3,
                "border_mode": "valid", "subsample": [1, 1], "dim_ordering": "tf",
                "batch_input_shape": [None, 6, 6, 1], "input_dtype": "float32",
                "W_regularizer": None, "b_regularizer": None, "activity_regularizer": None,
                "W_constraint": None, "b_constraint": None,
            },
        },
        {"class_name": "Flatten", "config": {"name": "flatten_1", "trainable": True}},
        {
            "class_name": "Dense",
            "config": {
                **shared, "name": "dense_1", "output_dim": 3, "input_dim": 32,
                "activation": "softmax", "W_regularizer": None, "b_regularizer": None,
                "activity_regularizer": None, "W_constraint": None, "b_constraint": None,
            },
        },
    ]  # fmt: skip
    weights = {
        "convolution2d_1": [random.normal(size=(3, 3, 1, 2)), np.zeros(2)],
        "flatten_1": [],
        "dense_1": [random.normal(size=(32, 3)), np.zeros(3)],
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "1.2.2"
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        group.attrs["backend"], group.attrs["keras_version"] = b"tensorflow", b"1.2.2"
        for name, arrays in weights.items():
            inner = group.create_group(name)
            names = [f"{name}_{letter}" for letter, _ in zip("Wb", arrays, strict=False)]
            inner.attrs["weight_names"] = [one.encode() for one in names]
            for one, array in zip(names, arrays, strict=True):
                inner[one] = array.astype(np.float32)
    return path


def translated(keras) -> dict:
    """Classes that take Keras 1's arguments."""

    class Convolution2D(keras.layers.Conv2D):
        @classmethod
        def from_config(cls, config):
            return keras.layers.Conv2D(
                config["nb_filter"], (config["nb_row"], config["nb_col"]), name=config["name"],
                activation=config["activation"], input_shape=config["batch_input_shape"][1:],
            )  # fmt: skip

    class Dense(keras.layers.Dense):
        @classmethod
        def from_config(cls, config):
            return keras.layers.Dense(
                config["output_dim"], activation=config["activation"], name=config["name"]
            )

    return {"Convolution2D": Convolution2D, "Dense": Dense}


def test_keras_1(tmp_path):
    path = keras_1(tmp_path / "old.h5")
    message = r"Keras 1\.2\.2, .*'convolution2d_1' \(Convolution2D\).*custom_objects=\{\"Conv"
    refused_unchanged(tmp_path, message, source=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objects = translated(importlib.import_module("tf_keras"))
        target = jm.load_target(path, custom_objects=objects)
    assert target.spec.n_classes == 3 and target.spec.input_shape == (6, 6, 1)
    assert target.spec.source.difference < 1e-5
    with h5py.File(path) as file:
        expected = file["model_weights/dense_1/dense_1_W"][:]
    np.testing.assert_array_equal(target.params["dense_1/kernel"], expected)


# --- what loading leaves as it was --------------------------------------------------------------


UNTOUCHED = """
import json, logging, os, random, sys, threading, warnings
import numpy as np
import jaxmeter as jm

def load(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return jm.load_target(**arguments)
        except ValueError as error:
            print("refused", error, file=sys.stderr)

# Before any framework is there:
sources = json.loads(sys.argv[1])
random.seed(1)
np.random.seed(1)
before = dict(os.environ), os.getcwd(), list(sys.path)
assert load(sources["h5-keras2"]) is not None
# What Keras, TensorFlow and JAX set when they are imported is theirs.
known = set(before[0])
after = {k: v for k, v in os.environ.items() if k in known}, os.getcwd(), list(sys.path)
assert before == after, (before, after)
assert [random.random(), np.random.rand()] == [
    random.Random(1).random(), np.random.RandomState(1).rand()
]

import jax, keras, onnxruntime, tensorflow as tf, tf_keras
jax.config.update("jax_numpy_rank_promotion", "allow")

def surroundings():
    names = ("tensorflow", "tf2onnx", "absl", "jax")
    policies = keras.config.dtype_policy().name, tf_keras.mixed_precision.global_policy().name
    return {
        "environment": dict(os.environ),
        "keras": [keras.config.floatx(), keras.config.epsilon(), keras.config.backend(),
                  keras.config.image_data_format(), policies],
        "tf_keras": [tf_keras.backend.floatx(), tf_keras.backend.epsilon(),
                     tf_keras.backend.image_data_format()],
        "devices": [str(d) for d in tf.config.get_visible_devices()],
        "tensorflow": [tf.config.functions_run_eagerly(), tf.executing_eagerly(),
                       tf.config.get_soft_device_placement()],
        "folder": [os.getcwd(), sorted(os.listdir("."))],
        "filters": [str(f) for f in warnings.filters],
        "logging": [logging.root.manager.disable, logging.root.level, len(logging.root.handlers),
                    *(logging.getLogger(n).level for n in names)],
        "jax": [jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion,
                str(jax.config.jax_default_device)],
        "python": [list(sys.path), sys.getrecursionlimit(), str(sys.excepthook)],
        "calls": [str(tf_keras.layers.Layer.__call__), str(keras.layers.Layer.__call__),
                  str(keras.src.backend.Variable._initialize_with_initializer)],
        "threads": [t.name for t in threading.enumerate() if not t.daemon],
        "unsafe": bool(keras.src.saving.serialization_lib.in_safe_mode()),
    }

def drawn(arguments):
    keras.utils.set_random_seed(1)
    random.seed(1)
    np.random.seed(1)
    tf.random.set_seed(1)
    keras.random.normal([2]), tf.random.normal([2]), tf_keras.backend.random_normal([2])
    if arguments:
        load(arguments)
    values = [random.random(), np.random.rand(), keras.random.normal([3]), tf.random.normal([3]),
              tf.random.uniform([2]), tf_keras.backend.random_normal([2]),
              keras.initializers.GlorotUniform()((2, 2))]
    return [np.asarray(value).tolist() for value in values]

def number(kind):
    return int("0" + kind(2).name.rpartition("_")[2].strip("dense"))

expected, found = drawn(None), {}
for name, arguments in sources.items():
    before, layers = surroundings(), [number(k.layers.Dense) for k in (keras, tf_keras)]
    random_numbers = drawn(arguments)
    after, now = surroundings(), [number(k.layers.Dense) for k in (keras, tf_keras)]
    found[name] = [k for k in before if before[k] != after[k]]
    found[name] += ["random"] * (random_numbers != expected)
    found[name] += ["names"] * (now != [n + 1 for n in layers])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def changed(samples, tmp_path_factory):
    """By format: what is not as it was before a load, in a process of its own."""
    folder = tmp_path_factory.mktemp("untouched")
    place = Path(shutil.copytree(samples, folder / "samples"))
    shutil.copytree(samples / "saved-model", place / "damaged")
    data = place / "damaged" / "model" / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:50])
    sources = {format: damage.target_of(format, place / format) for format in damage.FORMATS}
    sources["damaged"] = damage.target_of("saved-model", place / "damaged")
    (folder / "cwd").mkdir()
    before = damage.contents(folder)
    environment = {**os.environ, "PYTHONPATH": str(damage.REPOSITORY), "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", UNTOUCHED, json.dumps(sources)],
        cwd=folder / "cwd",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert damage.contents(folder) == before
    return json.loads(done.stdout)  # and nothing else was printed


@pytest.mark.parametrize("format", [*damage.FORMATS, "damaged"])
def test_loading_leaves_no_trace(changed, format):
    assert changed[format] == []
