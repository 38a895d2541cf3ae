"""The process that opens TensorFlow's files holds without the checks that come before it."""

import base64
import inspect
import json
import marshal
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import jaxmeter as jm

for package in ("tensorflow", "tf_keras", "tf2onnx", "onnx"):
    pytest.importorskip(package)

from jaxmeter.intake.safety import confinement, messages, process, worker  # noqa: E402

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="confinement is Linux's")
MEMORY = 2**31


def opened_unchecked(file: dict, readable: Path, seconds: float = 60.0):
    """What comes of a file that no allowlist has seen: its arrays' names, or why there are none."""
    request = {"weights": None, "config": None, "room": 2**28, "checked": False, **file}
    try:
        with process.opened(request, [readable], memory=MEMORY, seconds=seconds) as found:
            assert "seccomp" in found.held and "Landlock" in found.held, found.held
            return sorted(found.arrays)
    except process.Refused as error:
        return error


@pytest.fixture
def canary(tmp_path):
    """A file that must not appear. Only `model` below the same folder may be read."""
    (tmp_path / "model").mkdir()
    place = tmp_path / "canary"
    yield place
    assert not place.exists(), "the file wrote"


@pytest.fixture
def listener():
    """A port on which nothing must be heard."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server.getsockname()[1]
        with pytest.raises(TimeoutError):
            server.accept()


# --- what the process cannot do -----------------------------------------------------------------

ATTEMPTS = """
import importlib.util, json, os, socket, subprocess, sys, threading
spec = importlib.util.spec_from_file_location("confinement", sys.argv[1])
confinement = importlib.util.module_from_spec(spec)
spec.loader.exec_module(confinement)
from pathlib import Path
folder, port = Path(sys.argv[2]), int(sys.argv[3])
open_file = open(folder / "model" / "m")
held = confinement.confine([folder / "model", Path(os.__file__).parent], 2**28, 600)
import resource

def thread():
    done = []
    one = threading.Thread(target=lambda: done.append(1))
    one.start()
    one.join()
    return done

attempts = {
    "read the model": lambda: (folder / "model" / "m").read_text(),
    "list the model": lambda: os.listdir(folder / "model"),
    "start a thread": thread,
    "import": lambda: __import__("colorsys"),
    "read a limit": lambda: resource.getrlimit(resource.RLIMIT_AS),
    "read another file": lambda: (folder / "secret").read_text(),
    "read a password file": lambda: Path("/etc/passwd").read_text(),
    "read through a link": lambda: (folder / "model" / "link").read_text(),
    "read another process": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "list the root": lambda: os.listdir("/"),
    "write": lambda: (folder / "canary").write_text("x"),
    "write beside the model": lambda: (folder / "model" / "n").write_text("x"),
    "append to the model": lambda: open(folder / "model" / "m", "a"),
    "cut the model": lambda: os.truncate(folder / "model" / "m", 0),
    "cut an open file": lambda: os.ftruncate(open_file.fileno(), 0),
    "remove": lambda: os.unlink(folder / "secret"),
    "rename": lambda: os.rename(folder / "secret", folder / "canary"),
    "link": lambda: os.link(folder / "secret", folder / "canary"),
    "symlink": lambda: os.symlink("/etc/passwd", folder / "canary"),
    "make a folder": lambda: os.mkdir(folder / "canary"),
    "make a pipe": lambda: os.mkfifo(folder / "canary"),
    "change a mode": lambda: os.chmod(folder / "secret", 0o777),
    "change a time": lambda: os.utime(folder / "secret", (0, 0)),
    "set an attribute": lambda: os.setxattr(folder / "secret", "user.x", b"x"),
    "connect": lambda: socket.create_connection(("127.0.0.1", port), 2),
    "make a socket": lambda: socket.socket(),
    "make a local socket": lambda: socket.socket(socket.AF_UNIX),
    "make a pair of sockets": lambda: socket.socketpair(),
    "fork": lambda: os.fork(),
    "run": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "run a shell": lambda: 1 / (os.system("true") == 0),
    "replace itself": lambda: os.execv("/bin/true", ["true"]),
    "kill the parent": lambda: os.kill(os.getppid(), 9),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "stop its group": lambda: os.killpg(0, 19),
    "hide memory": lambda: os.memfd_create("x"),
    "take memory": lambda: bytearray(2**30),
    "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_AS, (2**45, 2**45)),
    "leave": lambda: os.chroot("/"),
}
found = {}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = "done"
    except BaseException as error:
        found[name] = type(error).__name__
print(json.dumps([held, found]))
"""
ALLOWED = ("read the model", "list the model", "start a thread", "import", "read a limit")


@LINUX
def test_a_confined_process_reads_its_files_and_does_nothing_else(tmp_path, canary, listener):
    (tmp_path / "model" / "m").write_text("weights")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("x")
    given = [confinement.__file__, str(tmp_path), str(listener)]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, *given], capture_output=True, text=True, check=True
    )
    held, found = json.loads(done.stdout)
    assert len(held) == 4, held
    assert {name for name, what in found.items() if what == "done"} == set(ALLOWED)
    assert (tmp_path / "secret").read_text() == "x"
    assert (tmp_path / "model" / "m").read_text() == "weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "secret"]


def returned(program: list, number: int, arguments: tuple = (), architecture: int = 0) -> int:
    """What the kernel makes of a call: classic BPF, as far as the filter uses it."""
    call = number.to_bytes(4, "little") + architecture.to_bytes(4, "little") + bytes(8)
    for value in (*arguments, *[0] * (6 - len(arguments))):
        call += (value % 2**64).to_bytes(8, "little")
    at, word = 0, 0
    for _ in range(len(program)):
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            word = int.from_bytes(call[operand : operand + 4], "little")
        elif code == 0x06:
            return operand
        else:
            tests = {0x15: word == operand, 0x35: word >= operand, 0x45: bool(word & operand)}
            at += if_true if tests[code] else if_false
    raise AssertionError("the program does not end")


ALLOW, EPERM, EACCES, ENOTTY, ENOSYS = 0x7FFF0000, 0x50001, 0x5000D, 0x50019, 0x50026


@pytest.mark.parametrize("machine", confinement._ARCHITECTURES)
def test_the_filter_decides_call_by_call(machine):
    column, architecture = confinement._ARCHITECTURES[machine]
    program = confinement._program(column, architecture)
    assert len(program) < 4096, "the kernel takes no longer ones"
    assert all(if_true < 256 and if_false < 256 for _, if_true, if_false, _ in program)

    def of(call, *arguments):
        return returned(program, call[column], arguments, architecture)

    for name, call in confinement._REFUSED.items():
        if call[column] is not None:
            assert of(call) == EPERM, name
    read, write, mmap, exit_group = ((0, 63), (1, 64), (9, 222), (231, 94))
    for call in (read, write, mmap, exit_group):
        assert of(call) == ALLOW
    assert returned(program, 0, (), architecture ^ 1) == 0x80000000
    assert returned(program, 0x40000000, (), architecture) == ENOSYS
    assert returned(program, 500, (), architecture) == ENOSYS
    assert of(confinement._CLONE3) == of(confinement._OPENAT2) == ENOSYS
    assert of(confinement._CLONE, 0x10000 | 0x100) == ALLOW
    assert of(confinement._CLONE, 0x11) == EPERM  # SIGCHLD: a fork
    openat = confinement._OPENAT
    assert of(openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_RDWR | os.O_APPEND):
        assert of(openat, 0, 0, flags) == EACCES
    assert of(confinement._IOCTL, 0, 0x541B) == ALLOW
    assert of(confinement._IOCTL, 0, 0x5412) == ENOTTY  # TIOCSTI types into a terminal
    assert of(confinement._TGKILL, os.getpid(), 1, 6) == ALLOW
    assert of(confinement._TGKILL, os.getppid(), 1, 9) == EPERM
    assert of(confinement._PRLIMIT, 0, 9, 0) == ALLOW
    for new in (0x7F0000000000, 0x10, 2**32):
        assert of(confinement._PRLIMIT, 0, 9, new) == EPERM


# --- files that no allowlist has seen -----------------------------------------------------------


def keras_2(layers: list[dict], path: Path, **inputs) -> dict:
    """An `.h5` as Keras 2 writes it, without weights."""
    config = {"class_name": "Functional", "config": {"name": "m", "layers": layers, **inputs}}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = b"2.15.0", b"tensorflow"
        file.attrs["model_config"] = json.dumps(config).encode()
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = np.array([b"x"])
        weights.create_group("x").attrs["weight_names"] = np.array([], "S1")
    return {"kind": "hdf5", "path": str(path)}


def functional(*layers: dict) -> dict:
    x = {
        "class_name": "InputLayer",
        "name": "x",
        "inbound_nodes": [],
        "config": {"batch_input_shape": [None, 3, 4], "dtype": "float32", "name": "x"},
    }
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [[layers[-1]["name"], 0, 0]]}
    return {"layers": [x, *layers], **ends}


def op(kind: str, function: str, value, **kwargs) -> dict:
    """A layer that tf_keras calls when it builds the model, since its input is a constant."""
    return {
        "class_name": kind,
        "name": "op",
        "config": {"name": "op", "trainable": True, "dtype": "float32", "function": function},
        "inbound_nodes": [["_CONSTANT_VALUE", -1, value, kwargs]],
    }


def bytecode(canary: Path) -> str:
    """What Keras 2 writes of a lambda; this one writes a file."""
    code = eval(f"lambda *a, **k: open({str(canary)!r}, 'w').close() or a[0]").__code__
    return base64.b64encode(marshal.dumps(code)).decode()


def lambda_cell(kind: str, field: str, canary: Path, **more) -> dict:
    """A recurrent layer whose cell's wrapper holds bytecode."""
    packed = bytecode(canary)
    cell = {"class_name": "SimpleRNNCell", "config": {"name": "c", "units": 3}}
    wrapper = {
        "name": "w",
        "cell": cell,
        field: [packed, None, None],
        f"{field}_type": "lambda",
        f"{field}_module": "x",
        **more,
    }
    return {
        "class_name": "RNN",
        "name": "op",
        "config": {"name": "op", "cell": {"class_name": kind, "config": wrapper}},
        "inbound_nodes": [[["x", 0, 0, {}]]],
    }


HOSTILE = {
    "bytecode": lambda c, port: lambda_cell("ResidualWrapper", "residual_fn", c),
    "bytecode-2": lambda c, port: lambda_cell(
        "DropoutWrapper", "dropout_fn", c, state_keep_prob=0.5
    ),
    "lambda": lambda c, port: {
        "class_name": "Lambda",
        "name": "op",
        "config": {
            "name": "op",
            "function_type": "lambda",
            "function": [bytecode(c), None, None],
            "module": "x",
            "output_shape": None,
            "output_shape_type": "raw",
            "output_shape_module": None,
        },
        "inbound_nodes": [[["x", 0, 0, {}]]],
    },
    **{
        f"{kind}:{name}": (
            lambda c, port, kind=kind, name=name: op(kind, name, str(c), contents="x")
        )
        for kind in ("TFOpLambda", "SlicingOpLambda")
        for name in ("io.write_file", "compat.v1.write_file")
    },
    "remove": lambda c, port: op("SlicingOpLambda", "io.gfile.rmtree", str(c.parent / "model")),
    "native": lambda c, port: op("TFOpLambda", "load_library", str(c.parent / "x.so")),
    "print": lambda c, port: op("TFOpLambda", "print", "x", output_stream=f"file://{c}"),
    "rpc": lambda c, port: op(
        "TFOpLambda", "raw_ops.RpcClient", f"127.0.0.1:{port}", timeout_in_ms=500
    ),
}


HARM = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import tf_keras
for path in map(Path, sys.argv[1:]):
    try:
        tf_keras.models.load_model(path, compile=False)
    except Exception as error:
        print(path, error, file=sys.stderr)
"""


def test_the_same_files_do_harm_where_nothing_holds_them(tmp_path):
    """Otherwise the tests that follow would show nothing."""
    files, victims = [], {}
    for kind in HOSTILE:
        if kind in ("native", "rpc"):
            continue
        folder = tmp_path / kind.replace(":", "-") / "model"
        folder.mkdir(parents=True)
        victims[kind] = folder.parent / "canary"
        keras_2(path=folder.parent / "m.h5", **functional(HOSTILE[kind](victims[kind], 0)))
        files.append(str(folder.parent / "m.h5"))
    subprocess.run([sys.executable, "-c", HARM, *files], check=True, capture_output=True)
    harmed = {kind for kind, canary in victims.items() if canary.exists()}
    harmed |= {kind for kind, canary in victims.items() if not (canary.parent / "model").exists()}
    assert harmed == set(victims)


@LINUX
@pytest.mark.parametrize("kind", HOSTILE)
def test_keras_2_files_without_an_allowlist(tmp_path, canary, listener, kind):
    layer = HOSTILE[kind](canary, listener)
    (tmp_path / "model" / "keep").write_text("x")
    (tmp_path / "x.so").write_bytes(b"\x7fELF")
    file = keras_2(path=tmp_path / "model" / "m.h5", **functional(layer))
    opened_unchecked(file, tmp_path / "model" / "m.h5")
    assert (tmp_path / "model" / "keep").exists()


def saved(folder: Path, step, initialise=None) -> dict:
    """A SavedModel that does `step` when it is called, and `initialise` when it is loaded."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(np.ones((4, 3), np.float32), name="w")

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
    def serve(x):
        return {"scores": step(tf, x @ module.w)}

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self):
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="r")

        def _initialize(self):
            if tf.executing_eagerly():
                return  # saving does what loading would do
            done = tf.nest.flatten(initialise(tf, module.w))
            values = [tf.cast(one, tf.float32) for one in done if isinstance(one, tf.Tensor)]
            with tf.control_dependencies(done):  # and the values are used, or they are pruned
                module.w.assign(
                    tf.add_n([module.w, *(tf.reduce_sum(v) * module.w for v in values)])
                )

        def _destroy_resource(self):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if initialise is not None:
            module.resource = Resource()
        tf.saved_model.save(
            module, str(folder), signatures={"serving_default": serve.get_concrete_function()}
        )
    return {"kind": "saved-model", "path": str(folder), "folders": []}


def endless(tf, w):
    return tf.raw_ops.StatelessWhile(
        input=[tf.cast(w[0, 0], tf.int32) - 12],
        cond=tf.function(lambda i: i < 1).get_concrete_function(tf.TensorSpec([], tf.int32)),
        body=tf.function(lambda i: i * 1).get_concrete_function(tf.TensorSpec([], tf.int32)),
    )[0]


LOADING = {
    "write": (lambda c: lambda tf, w: tf.io.write_file(c, "x"), "denied|not permitted"),
    "abort": (
        lambda c: lambda tf, w: tf.raw_ops.Abort(error_msg="x"),
        "gave up|exit code|took down",
    ),
    "abort-quietly": (
        lambda c: lambda tf, w: tf.raw_ops.Abort(exit_without_error=True),
        "with exit code 0",
    ),
    "endless": (lambda c: endless, "more than 8 s"),
    "read": (
        lambda c: (
            lambda tf, w: (
                tf.raw_ops.GenerateVocabRemapping(
                    new_vocab_file="/etc/passwd",
                    old_vocab_file="/etc/passwd",
                    new_vocab_offset=0,
                    num_new_vocab=1,
                ).remapping
            )
        ),
        "denied|not permitted",
    ),
    "memory": (
        lambda c: lambda tf, w: tf.zeros([2**31]) + 1.0,
        "took down|more than|allocate|OOM|standstill",
    ),
}


@LINUX
@pytest.mark.parametrize("kind", LOADING)
def test_saved_models_without_an_allowlist(tmp_path, canary, kind):
    make, message = LOADING[kind]
    folder = tmp_path / "model" / "m"
    file = saved(folder, lambda tf, z: z, make(str(canary)))
    error = opened_unchecked(file, folder, 8.0 if kind in ("endless", "memory") else 60.0)
    assert isinstance(error, process.Refused)
    assert re.search(message, str(error)), error
    plain = saved(tmp_path / "model" / "plain", lambda tf, z: z)
    assert "params:w" in opened_unchecked(plain, tmp_path / "model" / "plain")


@LINUX
def test_what_a_graph_does_when_it_is_called(tmp_path, canary):
    def step(tf, z):
        with tf.control_dependencies([tf.io.write_file(str(canary), "x")]):
            return tf.identity(z)

    file = saved(tmp_path / "model" / "m", step)
    request = {"checked": False, **file}
    paths = [tmp_path / "model" / "m"]
    with process.opened(request, paths, memory=MEMORY, seconds=60) as found:
        with pytest.raises(process.Refused, match="denied|not permitted"):
            found.original(np.ones((2, 4), np.float32))


@pytest.mark.parametrize("operation", ["DebugIdentity", "WriteFile", "Abort", "PyFunc"])
@pytest.mark.parametrize("form", ["fields", "packed"])
def test_operations_of_keras_2_files_are_refused_before_tf_keras_sees_them(
    tmp_path, monkeypatch, operation, form
):
    """By the first wall, whether or not there is a second one."""
    packed = f"\n\x02op\x12{chr(len(operation))}{operation}\x1a\x01x"
    node = {"name": "op", "op": operation, "input": ["x"], "attr": {}}
    layer = {
        "class_name": "TensorFlowOpLayer",
        "name": "op",
        "config": {
            "name": "op",
            "trainable": True,
            "dtype": "float32",
            "node_def": node if form == "fields" else packed,
            "constants": {},
        },
        "inbound_nodes": [[["x", 0, 0, {}]]],
    }
    path = tmp_path / "m.h5"
    keras_2(path=path, **functional(layer))
    with pytest.raises(ValueError, match=rf"m.h5.*operations that run code.*\b{operation}\b"):
        jm.load_target(path)


# --- what goes between --------------------------------------------------------------------------


def through_a_pipe(data: bytes, largest: int = 2**20, seconds: float = 10.0):
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        return messages.receive(reading, largest, time.monotonic() + seconds)
    finally:
        os.close(reading)


def framed(head: bytes, rest: bytes = b"") -> bytes:
    return len(head).to_bytes(8, "little") + head + rest


def test_messages_arrive_as_they_were_sent():
    import ml_dtypes

    arrays = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "b": np.zeros((0, 4), np.float16),
        "c": np.array(3.5, np.float32),
        "d": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "e": np.array([True, False]),
    }
    reading, writing = os.pipe()
    messages.send(writing, {"x": ["é", 1, None]}, arrays)
    head, found = messages.receive(reading, 2**20)
    os.close(reading)
    os.close(writing)
    assert head == {"x": ["é", 1, None]} and list(found) == list(arrays)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        (2**60).to_bytes(8, "little"),
        framed(b"{"),
        framed(b"[]"),
        framed(b"[[], {}]"),
        framed(b"[{}, {}"),
        framed(b'[{}, {"a": ["object", [1]]}]', bytes(8)),
        framed(b'[{}, {"a": ["O", [1]]}]', bytes(8)),
        framed(b'[{}, {"a": ["float32", [-1]]}]', bytes(8)),
        framed(b'[{}, {"a": ["float32", [1.5]]}]', bytes(8)),
        framed(b'[{}, {"a": ["float32", [true, 2]]}]'),
        framed(b'[{}, {"a": ["float32", [1099511627776]]}]', bytes(8)),
        framed(b'[{}, {"a": ["float32", [262144]], "b": ["float32", [1]]}]', bytes(16)),
        framed(b'[{}, {"a": "float32"}]'),
        framed(b"[" * 50_000),
    ],
    ids=range(16),
)
def test_messages_that_break_the_form(data):
    with pytest.raises(messages.Gone):
        through_a_pipe(data)


def test_a_message_that_does_not_come():
    reading, writing = os.pipe()
    with pytest.raises(messages.Late):
        messages.receive(reading, 1, time.monotonic() + 0.05)
    os.close(reading)
    os.close(writing)


@LINUX
@pytest.mark.parametrize("waits", ["threading.Lock().acquire()", "time.sleep(60)", "input()"])
def test_a_process_that_waits_for_nothing_is_told_from_one_that_waits(monkeypatch, waits):
    monkeypatch.setattr(process, "_STANDSTILL", 0.2)
    code = f"""if True:
        import threading, time
        lock = threading.Lock(); lock.acquire()
        threading.Thread(target=lock.acquire, daemon=True).start()
        print("r", flush=True)
        {waits.replace("threading.Lock()", "lock")}"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        child.stdout.read(1)
        watch = process._Watch(child.pid)
        try:
            for _ in range(20):
                time.sleep(0.1)
                watch()
            assert "Lock" not in waits
        except process._Standstill:
            assert "Lock" in waits
        finally:
            child.kill()


@LINUX
def test_what_does_not_hold_is_said():
    code = """if True:
        from jaxmeter.intake.safety import confinement
        confinement._landlocked = lambda *_: 0
        confinement._filtered = lambda *_: False
        print("; ".join(confinement.confine([], 2**34, 60)))"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "may read what you may" in said and "use the network: no seccomp" in said


def test_initialisers_are_counted_where_tracing_would_run_them():
    """On Keras' TensorFlow backend."""
    import keras

    from jaxmeter.intake.safety import budget, building

    backend = SimpleNamespace(backend=lambda: "tensorflow")
    fake = SimpleNamespace(backend=backend, initializers=keras.initializers)
    weight = SimpleNamespace(path="dense/kernel", _shape=(8000, 8000), _dtype="float32")
    with budget.within([], max_seconds=60):
        building._charge(fake, weight, keras.initializers.GlorotUniform())
        with pytest.raises(budget.TooExpensive, match="dense/kernel"):
            building._charge(fake, weight, keras.initializers.Orthogonal())


def test_no_initialiser_runs_of_a_file_that_has_the_values(tmp_path, monkeypatch):
    """An orthogonal matrix of 8,000 takes a minute to draw."""
    import tf_keras

    from jaxmeter.intake.tensorflow import files  # imports TensorFlow

    def never(*args, **kwargs):
        raise AssertionError("drawn")

    layers = tf_keras.layers
    dense = layers.Dense(3, activation="hard_sigmoid", kernel_initializer="orthogonal")
    model = tf_keras.Sequential([tf_keras.Input((4,)), dense])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
    monkeypatch.setattr(tf_keras.initializers.Orthogonal, "__call__", never)
    config = json.loads(model.to_json())
    file = {"path": str(tmp_path / "m.h5"), "kind": "hdf5", "config": config, "what": "m.h5"}
    found = files.keras_file({**file, "weights": None, "room": 2**20, "checked": True}).model
    np.testing.assert_array_equal(found.get_weights()[0], model.get_weights()[0])


@LINUX
def test_memory_that_a_graph_may_not_have_is_not_waited_for(tmp_path):
    def step(tf, z):
        return z + 0.0 * tf.reduce_sum(tf.fill([2**17, 2**17], 1.0))

    saved(tmp_path / "m", step)
    with pytest.raises(ValueError, match="standstill.*max_bytes"):
        jm.load_target(tmp_path / "m")


def test_arrays_that_are_no_numbers_are_not_sent():
    with pytest.raises(ValueError, match="'a' holds object"):
        messages.send(0, {}, {"a": np.array(["x", 1], object)})


# --- which files go there -----------------------------------------------------------------------


def tf_keras_model():
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [tf_keras.Input((4,)), layers.Dense(3, activation="hard_sigmoid"), layers.Dense(2)]
    )


def test_trust_and_objects_of_ones_own_open_files_here(tmp_path):
    path = tmp_path / "m.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf_keras_model().save(path)
    apart = jm.load_target(path)
    assert apart.spec.source.process.startswith("in a process of its own: ")
    assert "no network" in apart.spec.source.process or not sys.platform.startswith("linux")
    for given in ({"trust": True}, {"custom_objects": {"mine": len}}):
        here = jm.load_target(path, **given)
        assert here.spec.source.process == "in this process"
        x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        np.testing.assert_array_equal(here(x).logits, apart(x).logits)
        assert list(here.params) == list(apart.params)


def test_a_worker_that_was_killed_is_started_again(tmp_path):
    path = tmp_path / "m.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf_keras_model().save(path)
    jm.load_target(path)
    (server,) = process._servers
    server.process.kill()
    server.process.wait()
    assert jm.load_target(path).spec.n_classes == 2
    assert process._servers[0].process.pid != server.process.pid


def test_the_worker_sees_none_of_this_process_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("TF_TOKEN_example", "secret")  # Terraform's, not TensorFlow's
    process._stop()
    server = process._running()
    seen = Path(f"/proc/{server.process.pid}/environ").read_bytes()
    assert b"AWS" not in seen and b"secret" not in seen and b"CUDA_VISIBLE_DEVICES=-1" in seen


def test_the_worker_knows_where_it_is():
    """It stands for the package's `__init__`s by hand, so it must know the package's folder."""
    assert worker.PACKAGE == Path(inspect.getfile(jm)).parent
