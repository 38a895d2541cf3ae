"""The process that opens files by tf_keras and TensorFlow; run as a program by `process`.

It imports TensorFlow once. For each file it forks; the child gives its rights away, opens the file,
writes what it made of it and answers probe batches until it is told to stop. So nothing that a file
does reaches the next one, or the process that asked.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2]


def _without_the_rest() -> None:
    """Makes the package's files importable and leaves its `__init__` files alone.

    They import what opening a file does not need, for a second or more.
    """
    for name, folder in (("jaxmeter", PACKAGE), ("jaxmeter.intake", PACKAGE / "intake")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def main(arguments: list[str]) -> None:
    """Serves files until the other end closes.

    With the number of a socket, each file has a fork of this process; with "-" and descriptors to
    be written, this process serves one file by its own standard input and output.
    """
    _without_the_rest()
    used: list[Any] = [
        importlib.import_module("jaxmeter.intake.safety.messages"),
        importlib.import_module("jaxmeter.intake.safety.confinement"),
        importlib.import_module("jaxmeter.intake.tensorflow.files"),
    ]
    if arguments[0] == "-":
        back = os.dup(1)
        os.dup2(2, 1)  # what others print must not get between the messages
        _serve(*used, 0, back, *map(int, arguments[1:]))
        return
    with socket.socket(fileno=int(arguments[0])) as control:
        control.send(b"r")
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                _fork(used, control)


def _fork(used: list[Any], control: socket.socket) -> None:
    """One file: a child with the descriptors that came, until it ends or is to be ended."""
    told, descriptors, _, _ = socket.recv_fds(control, 1, 8)
    if not told:
        raise EOFError
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            _alone(keep=descriptors)
            _serve(*used, *descriptors)
            status = 0
        os._exit(status)
    for descriptor in descriptors:
        os.close(descriptor)
    control.send(json.dumps(child).encode())
    told = control.recv(1)  # until the other end has what it wants, or wonders what happened
    status = _reaped(child, patience=1.0 if told == b"w" else 0.0)
    if not told:
        raise EOFError
    control.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def _reaped(child: int, patience: float) -> int:
    """A child's status; one that has not ended by itself after so many seconds is killed."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)  # not yet reaped, so the number is still its own
    return os.waitpid(child, 0)[1]


def _alone(keep: list[int]) -> None:
    """Closes what belongs to the parent, and reads and prints nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    low = 3
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 2**16)


def _serve(
    messages: Any, confinement: Any, opener: Any, asking: int, answering: int, *files: int
) -> None:
    """Opens the one model that is asked for, and answers probe batches."""
    request, _ = messages.receive(asking, 0)
    stage = "load"
    try:
        paths = [*map(Path, request["readable"]), *_needed()]
        held = confinement.confine(
            paths, request["memory"], request["seconds"], written=request["written"]
        )
        messages.send(answering, {"held": held})  # said before the file has a say
        messages.receive(asking, 0)
        model = opener.loaded(request["file"], files)
        stage = "trace"
        head, arrays, original = opener.traced(model)
        messages.send(answering, {"export": head}, arrays)
        while True:
            _, arrays = messages.receive(asking, 2**40)
            messages.send(answering, {}, original(arrays["probe"]))
    except messages.Gone:
        return
    except BaseException as error:
        told = {"error": type(error).__name__, "message": str(error)[:10_000], "stage": stage}
        messages.send(answering, told)


def _needed() -> Iterator[Path]:
    """What Python and TensorFlow read when they are already loaded: late imports, processors."""
    yield PACKAGE
    yield Path(os.__file__).parent
    for name in ("tensorflow", "tf_keras", "tf2onnx", "onnx", "numpy", "h5py"):
        if file := getattr(sys.modules.get(name), "__file__", None):
            yield Path(file).parents[1]
    yield from map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"))
    yield from map(Path, ("/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"))
    yield from map(
        Path, ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")
    )


if __name__ == "__main__":
    main(sys.argv[1:])
