"""The launcher that gives each run to a Ray cluster, on this machine or elsewhere."""

import contextlib
import importlib.util
import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jaxmeter import disk
from jaxmeter.experiment.config import Config
from jaxmeter.experiment.runs import source
from jaxmeter.experiment.runs.run import Outcome, abandon, name_of
from jaxmeter.experiment.runs.schedule import StageQueue
from jaxmeter.experiment.runs.worker import Task, attempted, environment
from jaxmeter.experiment.serialization import to_json
from jaxmeter.experiment.stages import graph
from jaxmeter.experiment.stages.graph import Progress
from jaxmeter.experiment.store.fingerprint import content_of, surroundings
from jaxmeter.experiment.store.store import Store

_TURN = 0.2  # seconds between two looks at what the workers tell
_BUSY = 5.0  # seconds until a run that another sweep is at is tried again


def _flag(name: str) -> Any:
    return tyro.conf.arg(name=f"ray-{name}", prefix_name=False)


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """A launcher: each run is a task of a Ray cluster, which starts it where there is room.

    Runs that share a stage are not started together: one computes it, the others follow. A run
    whose worker or machine is lost is tried again elsewhere; what it had completed is in the store.
    The study's own file goes along, with the modules beside it that it imports.

    Attributes:
      address: of a cluster, "host:6379", "ray://host:10001" or "auto"; by default what RAY_ADDRESS
        says, else a cluster of this machine alone for as long as the sweep takes.
      cpus: CPUs a run, and about as many threads.
      gpus: GPUs a run, below 1 for several runs on one, which then share its memory; by default
        one where the cluster has any.
      retries: how often a run is tried again after its worker was lost.
    """

    address: Annotated[str | None, _flag("address")] = None
    cpus: Annotated[float, _flag("cpus")] = 1.0
    gpus: Annotated[float | None, _flag("gpus")] = None
    retries: Annotated[int, _flag("retries")] = 3

    def __call__(
        self, configs: Sequence[Config], store: Store, *, progress: Progress | None = None
    ) -> Iterator[Outcome]:
        """Outcomes as they come.

        Raises:
          ImportError: if Ray is not installed.
          ConfigError: for types of a notebook's own.
          ConnectionError: if there is no cluster at the address, or no more.
          ValueError: for what no machine has, and for a store that other processes cannot see.
        """
        if self.cpus <= 0 or self.retries < 0 or (self.gpus is not None and self.gpus < 0):
            raise ValueError(
                f"a run takes {self.cpus} CPUs, {self.gpus} GPUs and {self.retries} retries; the "
                "first is above 0, and none of them below."
            )
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"a run takes {self.gpus} GPUs; above 1 only whole ones can be had.")
        if store.mirror is not None and store.mirror.url.startswith("memory:"):
            raise ValueError(f"{store.mirror.url} is in the memory of this process alone.")
        if importlib.util.find_spec("ray") is None:
            raise ImportError("this launcher needs Ray: pip install 'jaxmeter[ray]'.")
        import ray

        shipment = source.packed(configs)
        with _token(store) as token, _connected(ray, self.address):
            errand = Task(
                study=configs[0].study if configs else "",
                store=str(store.path.absolute()) if store.mirror is None else store.mirror.url,
                shared=store.shared,
                token=token,
                folder=os.getcwd(),
                shipment=shipment,
            )
            sweep = _Sweep(ray, self, configs, store, errand)
            try:
                yield from sweep.outcomes(progress)
            except ray.exceptions.RayError as error:
                raise ConnectionError(
                    f"the Ray cluster is gone: {_short(error)}. What was completed is in the "
                    "store; the next sweep goes on from there."
                ) from error
            finally:
                sweep.cancel()


@contextlib.contextmanager
def _token(store: Store) -> Iterator[str | None]:
    """A file in the store by which workers know it; None for a URL, or where nobody may write."""
    path = store.path / "locks" / f"sweep-{secrets.token_hex(8)}"
    made = False
    if store.mirror is None:
        with contextlib.suppress(OSError):  # whatever has to be written will say why it cannot be
            disk.make_folder(path.parent, shared=store.shared)
            disk.create(path, shared=store.shared).close()
            made = True
    try:
        yield path.relative_to(store.path).as_posix() if made else None
    finally:
        if made:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection that is there already is used, and stays."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    more: dict[str, Any] = {}
    if address == "local":  # outcomes are all that goes through Ray's own memory
        more = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send them to its makers
    try:
        _reach(address)
        ray.init(address, logging_level="warning", log_to_driver=True, **more)
    except Exception as error:
        raise ConnectionError(
            f"there is no Ray cluster to be had at {address!r}: {_short(error)}. See `ray status` "
            "there, and that Ray's and Python's versions and RAY_AUTH_MODE here are the same."
        ) from error
    finally:
        if before is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises an OSError at once where nobody listens; Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


class _Sweep:
    """The runs of a sweep between this process and the cluster's."""

    def __init__(
        self, ray: Any, how: OnRay, configs: Sequence[Config], store: Store, errand: Task
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.how, self.configs, self.store = ray, how, configs, store
        gpus = float(ray.cluster_resources().get("GPU", 0) >= 1) if how.gpus is None else how.gpus
        _check_room(ray, how.cpus, gpus)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(
            num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
        )
        self.board = actor(_board()).remote()
        worker = ray.remote(
            num_cpus=how.cpus,
            num_gpus=gpus,
            max_retries=0,  # they are counted here, where they can be said
            max_calls=1 if gpus else 0,  # an idle process would keep its device and the memory
            runtime_env={"env_vars": environment(how.cpus, gpus, os.environ)},
        )
        self.task = worker(_task)
        self.errand = ray.put(errand)
        self.around: Any = surroundings()  # of the workers, once one has told
        self.asked: Any = worker(surroundings).remote()
        self.line = StageQueue(configs, self._look)
        self.at_work: dict[Any, int] = {}  # position of a run by its task's result
        self.passed: dict[int, set[str]] = {}  # stages of runs at work
        self.lost: Counter[int] = Counter()  # workers, by run

    def outcomes(self, progress: Progress | None) -> Iterator[Outcome]:
        """All of them."""
        while self.at_work or len(self.line):
            self._learn()
            while (i := self.line.next()) is not None:
                config, self.passed[i] = self.configs[i], set()
                task = self.task.remote(
                    to_json(config), graph.code(config), self.errand, self.board, i
                )
                self.at_work[task] = i
            if self.at_work:
                ready, _ = self.ray.wait(list(self.at_work), timeout=_TURN)
            else:  # all that is left is another sweep's for now
                ready = []
                time.sleep(_TURN)
            ended = [self._ended(task) for task in ready]
            self._hear(progress)
            yield from filter(None, ended)

    def _look(self, config: Config) -> graph.Ahead:
        """How far a run has come; what files hold that only the workers have is not known."""
        contents: dict[str, str] = {}
        for path in config.files():
            with contextlib.suppress(OSError):
                contents[str(path)] = content_of(path)
        named = {str(path): str(path) for path in config.files()}
        return graph.ahead(config, self.store, {**named, **contents}, self.around)

    def _learn(self) -> None:
        """Takes the workers' surroundings for this process' own: keys of stages hang on them."""
        if self.asked is None or not self.ray.wait([self.asked], timeout=0)[0]:
            return
        with contextlib.suppress(self.ray.exceptions.RayError):  # then a run will say what it is
            self.around = self.ray.get(self.asked)
            self.line.forget()
        self.asked = None

    def _ended(self, task: Any) -> Outcome | None:
        """What became of a run; None if it is tried again."""
        i = self.at_work.pop(task)
        errors = self.ray.exceptions
        del self.passed[i]
        try:
            outcome = self.ray.get(task)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            outcome = Outcome(run=self._name(i), state="failed", error=_short(error))
        except errors.RayError as error:
            self.line.ended(i)
            return self._again(i, error)
        self.line.ended(i, done=outcome is not None and outcome.state == "done")
        if outcome is None:
            self.line.again(i, seconds=_BUSY)
        return outcome

    def _again(self, i: int, error: Exception) -> Outcome | None:
        """Tries a run again whose worker was lost, or gives it up."""
        self.lost[i] += 1
        name, times, most = self._name(i), self.lost[i], self.how.retries
        if times <= most:
            self.store.say(f"{name} lost its worker; retry {times} of {most}. {_short(error)}")
            self.line.again(i)
            return None
        line = (
            f"its worker was lost {times} times, which is all that --ray-retries {most} allows. "
            f"{_short(error)}"
        )
        abandon(name, self.store, line)
        return Outcome(run=name, state="failed", error=line)

    def _name(self, i: int) -> str:
        try:
            return name_of(self.configs[i])
        except OSError:  # its files may be on the workers' machines only
            return self.configs[i].study

    def _hear(self, progress: Progress | None) -> None:
        """What the workers told since the last time."""
        latest = ""
        for i, text, done, total in self.ray.get(self.board.take.remote()):
            if total < 0:
                self.store.say(text)
                continue
            latest = text
            if done == total:
                self.line.passed(i)
                self.passed.get(i, set()).add(text)
        if progress and latest:
            done = sum(map(len, self.passed.values()))
            count = sum(graph.most_stages(self.configs[i]) for i in self.passed)
            progress(f"{len(self.passed)} at work, {latest}", done, max(count, 1))

    def cancel(self) -> None:
        """Ends what is at work, at once: its stages in flight are lost, as to a crash."""
        for task in self.at_work:
            with contextlib.suppress(Exception):
                self.ray.cancel(task, force=True)
        with contextlib.suppress(Exception):
            self.ray.kill(self.board)


def _check_room(ray: Any, cpus: float, gpus: float) -> None:
    wanted = {"CPU": cpus, "GPU": gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
        there = "; ".join(f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise ValueError(
            f"a run takes {cpus:g} CPUs and {gpus:g} GPUs, and no machine of the cluster has them "
            f"({there}), so it would wait for ever. See --ray-cpus and --ray-gpus."
        )


def _task(config: str, code: str, errand: Task, board: Any, i: int) -> Outcome | None:
    """What a worker does."""
    import ray

    def post(text: str, done: int, total: int) -> None:
        board.post.remote((i, text, done, total))

    outcome = attempted(config, code, errand, post)
    ray.get(board.flush.remote())  # what was posted is there before this ends
    return outcome


def _board() -> type:
    """Where workers post words for the sweep; a local class goes to Ray whole, without JAX."""

    class Board:
        def __init__(self) -> None:
            self.posts: list[Any] = []

        def post(self, words: Any) -> None:
            self.posts.append(words)

        def take(self) -> list[Any]:
            taken, self.posts = self.posts, []
            return taken

        def flush(self) -> None:
            pass

    return Board


def _short(error: BaseException) -> str:
    """An error's first sentence, of a traceback the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if len(lines) > 1 and "ray::" in lines[0]:
        return lines[-1]
    return re.split(r"(?<=\.)\s", lines[0])[0]
