"""Has a file opened in a process of its own, without rights, and takes over what it holds.

The process is started at the first file that needs it and serves this one's later files too, so
that TensorFlow is imported once. Where the system cannot fork, each file has a process to itself.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmeter.intake.safety import messages, worker

_START = 600.0  # seconds that importing TensorFlow may take on a slow disk
# Of the environment it sees what finds and configures libraries; not this process' secrets.
_PASSED_ON = (
    *("LANG", "LC_", "LD_LIBRARY_PATH", "DYLD_", "OMP_", "OPENBLAS_", "MKL_", "SYSTEMROOT"),
    *("TF_ENABLE_ONEDNN_OPTS", "TF_NUM_", "TF_DETERMINISTIC_OPS"),
)
_OUT_OF_MEMORY = ("MemoryError", "ResourceExhaustedError")
_STANDSTILL = 3.0  # seconds in which no thread did anything or could have
# How the kernel's waiting for another thread is numbered, on x86-64 and ARM.
_FUTEX = ("202", "98", "449")
_FORKS = sys.platform.startswith("linux")
_WHY = {
    signal.SIGKILL: "it was killed, for want of memory or at its limit of processor time",
    signal.SIGXCPU: "it took more processor time than it may",
    signal.SIGXFSZ: "it tried to write a file",
    signal.SIGABRT: "it gave up",
    signal.SIGSEGV: "it crashed",
}


class Opened(NamedTuple):
    """What a file came to.

    Attributes:
      head: what the process says of it.
      arrays: by name.
      original: the framework's own outputs by name for a batch; while the process lives.
      held: what the process could not do, in words.
    """

    head: Any
    arrays: dict[str, np.ndarray]
    original: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    held: str


class Refused(ValueError):
    """The process could not open the file.

    Attributes:
      stage: "load" if the framework could not read it, "trace" if what it read cannot be audited,
        "ended" if the process did not live to say why.
    """

    def __init__(self, message: str, stage: str = "ended"):
        """Says why in `message`."""
        super().__init__(message)
        self.stage = stage


@contextlib.contextmanager
def opened(
    file: Mapping[str, Any],
    readable: Sequence[Path],
    *,
    memory: int,
    seconds: float,
    writable: Sequence[int] = (),
    written: int = 0,
) -> Iterator[Opened]:
    """Opens a file in a process of its own, which lives until the context ends.

    Args:
      file: what `tf_files.opened` takes; JSON.
      readable: the model's files.
      memory: bytes that opening it may take beside TensorFlow, and its arrays here.
      seconds: it may take until the context ends.
      writable: descriptors of files that it may write, and no others.
      written: bytes that each of them may have.

    Raises:
      Refused: if it does not open, in this time and memory, or takes the process down with it.
    """
    request = {
        "file": dict(file),
        "readable": [str(path.absolute()) for path in readable],
        "memory": memory,
        "seconds": seconds * (os.cpu_count() or 1),
        "written": written,
    }
    with _LOCK, _conversation(writable) as talk:
        deadline = time.monotonic() + seconds

        def ask(head: Any, arrays: messages.Arrays) -> tuple[Any, dict[str, np.ndarray]]:
            try:
                messages.send(talk.asking, head, arrays)
                watch = _Watch(talk.child)
                found, values = messages.receive(talk.answering, memory, deadline, watch)
            except _Standstill:
                raise Refused(
                    "opening it came to a standstill, and its process was ended. TensorFlow waits "
                    f"like this for memory beyond the {memory:,} bytes that opening the file may "
                    "take. If you trust the file, allow more: max_bytes=, --max-bytes."
                ) from None
            except messages.Late:
                raise Refused(
                    f"opening it takes more than {seconds:.0f} s; its process was ended. If you "
                    "trust the file, allow more: max_seconds=, --max-seconds."
                ) from None
            except messages.Gone:
                raise Refused(talk.epitaph()) from None
            if error := found.get("error"):
                if error in _OUT_OF_MEMORY:
                    raise Refused(
                        f"opening it takes more than {memory:,} bytes. If you trust the file, "
                        "allow more: max_bytes=, --max-bytes."
                    )
                raise Refused(str(found.get("message")) or str(error), str(found.get("stage")))
            return found, values

        held = ask(request, {})[0]["held"]
        head, arrays = ask({}, {})
        yield Opened(
            head.get("export"),
            arrays,
            lambda probe: ask({}, {"probe": probe})[1],
            "; ".join(held) or "this system does not confine it",
        )


# --- the process --------------------------------------------------------------------------------


class _Talk(NamedTuple):
    """A process, descriptors to ask and to be answered, what to say of it when it is no more."""

    child: int
    asking: int
    answering: int
    epitaph: Callable[[], str]


class _Server(NamedTuple):
    """A process that has imported TensorFlow and forks for each file."""

    process: subprocess.Popen[Any]
    control: socket.socket
    owner: int  # the process that started it; another, forked from that one, starts its own


_LOCK = threading.RLock()
_servers: list[_Server] = []


@contextlib.contextmanager
def _conversation(writable: Sequence[int]) -> Iterator[_Talk]:
    if not _FORKS:
        with _single(writable) as talk:
            yield talk
        return
    server = _running()
    theirs_in, asking = os.pipe()
    answering, theirs_out = os.pipe()
    try:
        socket.send_fds(server.control, [b"o"], [theirs_in, theirs_out, *writable])
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    ended: list[int] = []

    def end(how: bytes) -> int:
        if not ended:
            server.control.send(how)
            ended.append(int(json.loads(server.control.recv(16))))
        return ended[0]

    try:
        child = int(json.loads(server.control.recv(16)))
        yield _Talk(child, asking, answering, lambda: _epitaph(end(b"w")))
    finally:
        os.close(asking)
        os.close(answering)
        try:
            end(b"k")
        except (OSError, ValueError):  # the server itself is gone; the next file gets another
            _stop()


@contextlib.contextmanager
def _single(writable: Sequence[int]) -> Iterator[_Talk]:
    """A process for one file, on systems that cannot be trusted to fork one with threads."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "pass_fds": writable}
    with _started(["-", *map(str, writable)], **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            talk = (process.pid, process.stdin.fileno(), process.stdout.fileno())
            yield _Talk(*talk, lambda: _epitaph(process.wait()))
        finally:
            process.kill()


def _running() -> _Server:
    if _servers and (_servers[0].owner != os.getpid() or _servers[0].process.poll() is not None):
        _stop()
    if not _servers:
        control, theirs = socket.socketpair()
        with theirs:
            process = _started([str(theirs.fileno())], pass_fds=[theirs.fileno()])
        control.settimeout(_START)
        _servers.append(_Server(process, control, os.getpid()))
        try:
            ready = control.recv(1)
        except OSError:
            ready = b""
        if ready != b"r":
            _stop()
            raise Refused(
                "the process that opens TensorFlow's files does not start. Run "
                f"`{sys.executable} -c 'import tensorflow, tf_keras, tf2onnx'` to see why."
            )
        control.settimeout(None)
    return _servers[0]


def _started(arguments: list[str], **streams: Any) -> subprocess.Popen[Any]:
    """The program, quiet, on the CPU, and out of reach of the terminal's Ctrl-C."""
    kept = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
    roots = [path for path in sys.path if path and Path(path).is_absolute()]
    kept |= {
        "PYTHONPATH": os.pathsep.join(roots),
        "PATH": os.environ.get("PATH", ""),
        "KERAS_BACKEND": "jax",  # else importing Keras would start TensorFlow's threads
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    found: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-B", "-s", "-P", worker.__file__, *arguments],
        env=kept,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **({"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | streams),
    )
    return found


@atexit.register
def _stop() -> None:
    """Ends the process; a copy of it in a forked process only forgets it."""
    while _servers:
        server = _servers.pop()
        server.control.close()
        if server.owner == os.getpid():
            server.process.kill()
            server.process.wait()
        else:
            server.process.returncode = 0  # not this process' child: nothing to wait for


class _Standstill(Exception):
    """No thread of the process can go on by itself."""


class _Watch:
    """Raises `_Standstill` once all threads of a process have waited for one another for long.

    TensorFlow does that when it may not have the memory it wants: it waits ten seconds, asks again,
    and so on. A thread that waits for a disk, or for its turn on a busy processor, is not counted
    as waiting. Says nothing on systems whose kernel does not tell.
    """

    def __init__(self, child: int):
        self._threads = Path(f"/proc/{child}/task")
        self._spent = -1
        self._since = 0.0

    def __call__(self) -> None:
        spent = self._waiting()
        if spent is None or spent != self._spent:
            self._spent, self._since = -1 if spent is None else spent, time.monotonic()
        elif time.monotonic() - self._since >= _STANDSTILL:
            raise _Standstill

    def _waiting(self) -> int | None:
        """Processor time it has spent if all its threads wait for others, else none."""
        spent = 0
        try:
            for thread in self._threads.iterdir():
                if (thread / "syscall").read_text().split()[0] not in _FUTEX:
                    return None
                # The name before the bracket may hold anything; then the state, times 12th, 13th.
                values = (thread / "stat").read_text().rpartition(")")[2].split()
                spent += int(values[11]) + int(values[12])
        except (OSError, IndexError):
            return None
        return spent


def _epitaph(code: int) -> str:
    """Why a process that did not answer is no more."""
    if code >= 0:
        return (
            f"opening it ended the process that opened it, with exit code {code}: the file does "
            "more than hold a model."
        )
    why = _WHY.get(signal.Signals(-code), f"signal {-code} ended it")
    return (
        f"opening it took down the process that opened it: {why}. The file may be damaged or do "
        "more than hold a model; if you trust it and it is large, allow more: max_bytes=, "
        "max_seconds=."
    )
