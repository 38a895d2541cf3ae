"""Model files of every format, ways to damage them, and a process that loads them.

Run as a program it is that process: it answers one load a line, and lives on to the next, so that
what kills it is known to have done so.
"""

import hashlib
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

REPOSITORY = Path(__file__).parents[1]
LIMIT = 20  # seconds a load may take
MEMORY = 4 * 2**30  # bytes of address space that loads may add to what a process has already
SUFFIX = {
    "keras": ".keras",
    "h5": ".h5",
    "h5-keras2": ".h5",
    "onnx": ".onnx",
    "saved-model": "",
    "json": "",
}
FORMATS = tuple(SUFFIX)


def target_of(format: str, folder: Path) -> dict[str, str]:
    """Arguments of load_target for the sample in a folder."""
    if format == "json":
        return {"source": str(folder / "model.json"), "weights": str(folder / "model.weights.h5")}
    return {"source": str(folder / f"model{SUFFIX[format]}")}


# --- damage -------------------------------------------------------------------------------------


def damaged(data: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """Bytes with one thing done to them, and what."""
    size = len(data)
    start = int(random.integers(size))
    length = int(min(size - start, 2 ** random.integers(0, 11)))
    end = start + length
    other = int(random.integers(size))
    match kind := str(random.choice([*"cfmzrsid"])):
        case "c":
            return data[:start], f"cut at {start} of {size}"
        case "f" | "m":
            changed = bytearray(data)
            for _ in range(1 if kind == "f" else int(2 ** random.integers(1, 8))):
                changed[random.integers(size)] ^= 1 << random.integers(8)
            return bytes(changed), "one bit" if kind == "f" else "bits"
        case "z":
            return data[:start] + bytes(length) + data[end:], f"zeros {start}:{end}"
        case "r":
            times = int(random.integers(2, 6))
            return data[:start] + data[start:end] * times + data[end:], f"{times}x {start}:{end}"
        case "s":
            piece = data[other : other + length]
            return data[:start] + piece + data[start + len(piece) :], f"{other} over {start}:{end}"
        case "i":
            return data[:start] + data[other : other + length] + data[start:], f"{other} at {start}"
    return data[:start] + data[end:], f"without {start}:{end}"


def damage(format: str, folder: Path, random: np.random.Generator) -> str:
    """Damages the sample in a folder, and says how."""
    if format == "saved-model":
        files = ["saved_model.pb", "keras_metadata.pb"]
        files += ["variables/variables.index", "variables/variables.data-00000-of-00001"]
        path = folder / "model" / str(random.choice(files))
    elif format == "json":
        path = folder / str(random.choice(["model.json", "model.weights.h5"]))
    else:
        path = folder / f"model{SUFFIX[format]}"
    if format == "keras" and random.random() < 0.75:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        names = ["config.json", "model.weights.h5", "metadata.json"]
        name = str(random.choice(names, p=[0.45, 0.5, 0.05]))
        members[name], what = damaged(members[name], random)
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return f"{name} inside: {what}"
    content, what = damaged(path.read_bytes(), random)
    path.write_bytes(content)
    return f"{path.name}: {what}"


# --- the process that loads ---------------------------------------------------------------------


class Answer(NamedTuple):
    """What a load came to.

    Attributes:
      outcome: "target", or the exception's class; "died", "hung".
      message: the exception's.
      seconds: it took.
      grown: by how many bytes the process' largest size grew.
      wrote: what it printed on stdout.
    """

    outcome: str
    message: str
    seconds: float
    grown: int
    wrote: str


class Loader:
    """A process that loads targets, started anew when it dies."""

    def __init__(self, scratch: Path):
        """`scratch` is an empty folder: its current and temporary one."""
        self.scratch = scratch
        self.process: subprocess.Popen[str] | None = None
        self.starts = 0

    def __enter__(self) -> "Loader":
        self._running()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def load(self, limit: float = LIMIT, **arguments: Any) -> Answer:
        """What load_target comes to in that process."""
        return Answer(*self._asked({"load": arguments}, limit))

    def make(self, folder: Path) -> None:
        """Has it write the samples, in a folder for each format."""
        answer = self._asked({"make": str(folder)}, 600)
        assert answer == ["made"], answer

    def _asked(self, question: Any, limit: float) -> list[Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        began = time.monotonic()
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], limit)
        line = process.stdout.readline() if ready else ""
        seconds = time.monotonic() - began
        if line:
            return json.loads(line)
        if not ready:
            self._stop()
            return ["hung", "", seconds, 0, ""]
        code = process.wait()
        self.process = None
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        errors = (self.scratch.parent / "stderr").read_text(errors="replace")[-1500:]
        return ["died", f"{name}: {errors}", seconds, 0, ""]

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            self.starts += 1
            with open(self.scratch.parent / "stderr", "w") as errors:
                self.process = subprocess.Popen(
                    [sys.executable, __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    cwd=self.scratch,
                    env={
                        **os.environ,
                        "KERAS_BACKEND": "jax",
                        "PYTHONPATH": str(REPOSITORY),
                        "TMPDIR": str(self.scratch),
                    },
                )
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == '["ready"]\n'
        return self.process

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def contents(*folders: Path) -> dict[str, str]:
    """Every file under some folders, and a digest of it."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    }


def _answers() -> Iterator[tuple[Any, Any]]:
    """Questions, and a function that answers them; nothing else gets to the other end."""
    private = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import onnxruntime  # noqa: F401 (which leaves a file behind when it is imported)

    from jaxmeter.intake import frameworks

    frameworks.tensorflow("x")
    private.write('["ready"]\n')
    for line in sys.stdin:
        yield json.loads(line), lambda answer: private.write(json.dumps(answer) + "\n")


def main() -> None:
    """Answers until there are no more questions."""
    import gc
    import warnings

    import jax

    import jaxmeter as jm

    warnings.simplefilter("ignore")
    limited = False
    out = io.StringIO()
    sys.stdout = out
    done = 0
    for question, answer in _answers():
        if "make" in question:
            make(Path(question["make"]))
            answer(["made"])
            continue
        if not limited:  # frameworks reserve address space when they are imported
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            limited = True
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out.seek(0)
        out.truncate()
        began = time.monotonic()
        try:
            jm.load_target(**question["load"])
            outcome, message = "target", ""
        except BaseException as error:
            outcome, message = type(error).__name__, str(error)
        seconds = time.monotonic() - began
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        done += 1
        if done % 25 == 0:
            jax.clear_caches()
            gc.collect()
        answer([outcome, message, seconds, grown, out.getvalue()])


# --- samples ------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Writes a model of each format, in a folder of its own."""
    import importlib
    import warnings

    import jax
    import keras

    from jaxmeter.intake import frameworks

    folders = {format: folder / format for format in FORMATS}
    for place in folders.values():
        place.mkdir(parents=True)
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        model = network(keras)
        model.save(folders["keras"] / "model.keras")
        model.save(folders["h5"] / "model.h5")
        model.save_weights(folders["json"] / "model.weights.h5")
        (folders["json"] / "model.json").write_text(model.to_json())
        frameworks.tensorflow("x")
        old = network(importlib.import_module("tf_keras"))
        old.save(folders["h5-keras2"] / "model.h5")
        old.save(folders["saved-model"] / "model", save_format="tf")
        onnx_sample(folders["onnx"] / "model.onnx")


def network(keras: Any) -> Any:
    """A small image classifier, of either Keras; hard_sigmoid makes tf_keras open its .h5."""
    layers = keras.layers
    old = keras.__name__ == "tf_keras"
    return keras.Sequential(
        [
            layers.InputLayer((6, 6, 1)) if old else keras.Input((6, 6, 1)),
            layers.Conv2D(2, 3, activation="hard_sigmoid" if old else "relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(name="flat"),
            layers.Dense(3, activation="softmax", name="scores"),
        ]
    )


def onnx_sample(path: Path) -> None:
    """Convolution, shape arithmetic, a loop, a softmax."""
    import onnx
    from onnx import TensorProto, numpy_helper
    from onnx import helper as h

    random = np.random.default_rng(0)

    def array(name: str, value: Any, dtype: Any = np.float32) -> Any:
        return numpy_helper.from_array(np.asarray(value, dtype), name)

    body = h.make_graph(
        [
            h.make_node("Mul", ["h_in", "half"], ["h_out"]),
            h.make_node("Identity", ["going_in"], ["going"]),
        ],
        "body",
        [
            h.make_tensor_value_info("i", TensorProto.INT64, []),
            h.make_tensor_value_info("going_in", TensorProto.BOOL, []),
            h.make_tensor_value_info("h_in", TensorProto.FLOAT, [None, 32]),
        ],
        [
            h.make_tensor_value_info("going", TensorProto.BOOL, []),
            h.make_tensor_value_info("h_out", TensorProto.FLOAT, [None, 32]),
        ],
    )
    nodes = [
        h.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], kernel_shape=[3, 3]),
        h.make_node("Relu", ["c"], ["r"]),
        h.make_node("Shape", ["r"], ["shape"]),
        h.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        h.make_node("Concat", ["n", "rest"], ["flat_shape"], axis=0),
        h.make_node("Reshape", ["r", "flat_shape"], ["f"]),
        h.make_node("ConstantOfShape", ["steps_shape"], ["ones"], value=array("v", [1], np.int64)),
        h.make_node("ReduceSum", ["ones"], ["steps"], keepdims=0),
        h.make_node("Loop", ["steps", "", "f"], ["g"], body=body),
        h.make_node("Gemm", ["g", "fc.weight", "fc.bias"], ["z"], transB=1),
        h.make_node("Softmax", ["z"], ["y"], axis=-1),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 6, 6])],
        [h.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            array("conv.weight", random.normal(size=(2, 1, 3, 3))),
            array("conv.bias", np.zeros(2)),
            array("fc.weight", random.normal(size=(3, 32))),
            array("fc.bias", np.zeros(3)),
            array("half", 0.5),
            array("zero", [0], np.int64),
            array("rest", [-1], np.int64),
            array("steps_shape", [3], np.int64),
        ],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
