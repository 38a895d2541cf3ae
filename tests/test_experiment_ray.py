"""Sweeps on Ray and as arrays of jobs: lost workers and nodes, the study's source, shares."""

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fatal_study
import keras
import pytest
from conftest import REPOSITORY

import jaxmeter as jm
from jaxmeter import disk, experiment
from jaxmeter.experiment.runs import run as runs
from jaxmeter.experiment.runs import source, worker
from jaxmeter.experiment.runs.schedule import StageQueue
from jaxmeter.experiment.stages import graph
from jaxmeter.experiment.store.store import Store
from jaxmeter.shadow import RecipeConfig

pytestmark = pytest.mark.filterwarnings("ignore:the target warns")  # which it is to do

SAME = ("config.json", "results.json", "scores.npz")


def all_files(store: Path) -> dict[str, dict[str, bytes]]:
    """The files of finished runs."""
    return {
        folder.name: {name: (folder / name).read_bytes() for name in SAME}
        for folder in (store / "runs").iterdir()
        if (folder / "results.json").exists()
    }


def environ(home: Path) -> dict[str, str]:
    """Of a process: jaxmeter as it is here, and a home for what Ray keeps in one."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(home)}


@pytest.fixture
def base() -> fatal_study.Study:
    return fatal_study.BASE


# --- On a cluster --------------------------------------------------------------------------------


def study_in(folder: Path) -> Path:
    """The study's file and its neighbour in a folder of their own."""
    for name in ("fatal_study.py", "fatal_width.py"):
        (folder / name).write_bytes(Path(__file__).with_name(name).read_bytes())
    (folder / "marks").mkdir()
    return folder / "fatal_study.py"


def on_ray(study: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The study's command, from its folder."""
    return subprocess.run(
        [sys.executable, study.name, "sweep", "--launcher", "ray", "--store", "store", *arguments],
        cwd=study.parent,
        capture_output=True,
        text=True,
        timeout=240,
        env=environ(study.parent) | {"JAX_ENABLE_X64": "0"},
    )


@pytest.mark.study
def test_lost_workers_cost_their_runs_and_nothing_else(tmp_path, monkeypatch):
    study = study_in(tmp_path)
    ended = on_ray(study, "--ray-retries", "1")
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    for text in ("the target prints", "the target warns", "1 of 4 runs failed"):
        assert text in ended.stderr
    assert ended.stderr.count("lost its worker; retry 1 of 1") == 2

    monkeypatch.chdir(tmp_path)
    configs = experiment.expand(fatal_study.BASE, fatal_study.AXES)
    seen = {outcome.run: outcome for outcome in experiment.status("fatal", "store")}
    outcomes = [seen.pop(experiment.name_of(config)) for config in configs]
    assert not seen  # a script's runs have the names that a module's have
    assert [outcome.state for outcome in outcomes] == ["done", "done", "done", "failed"]
    assert "worker was lost 2 times" in str(outcomes[-1].error)
    assert len(list(Path("marks").glob("died-*"))) == 3
    for told in Path("marks").glob("process-*"):
        found = json.loads(told.read_text())
        assert (found["PJRT_NPROC"], found["JAX_ENABLE_X64"]) == ("1", "0")

    assert experiment.sweep(fatal_study.BASE, fatal_study.AXES[:3], "here").failed == ()
    assert all_files(Path("store")) == all_files(Path("here"))


@pytest.mark.study
def test_a_node_removed_midway_costs_its_running_tasks(tmp_path):
    target = tmp_path / "target.keras"
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, "softmax", name="out")]
    keras.Sequential([keras.layers.Input((8, 8, 1)), *layers]).save(target)
    tests = Path(__file__).parent
    found = {}
    for script, more in (("clustering.py", []), ("killing.py", ["[null]"])):
        ended = subprocess.run(
            [sys.executable, str(tests / script), str(tmp_path / script), str(target), *more],
            capture_output=True,
            text=True,
            timeout=240,
            env=environ(tmp_path),
        )
        assert ended.returncode == 0, ended.stderr
        found[script] = json.loads(ended.stdout.splitlines()[-1])
    assert found["clustering.py"]["failed"] == 0
    (removed,) = found["clustering.py"]["removed"]
    (said,) = found["clustering.py"]["said"]
    assert said.startswith(f"{removed} lost its worker; retry 1 of 3")
    expected = all_files(tmp_path / "killing.py")
    assert len(expected) == 24 and all_files(tmp_path / "clustering.py") == expected
    lines = (tmp_path / "clustering.py" / "journal.jsonl").read_text().splitlines()
    completed = [(o["stage"], o["key"]) for o in map(json.loads, lines) if o["event"] == "computed"]
    assert len(completed) == len(set(completed))


@pytest.mark.study
def test_runs_that_share_a_gpu_share_its_memory(tmp_path):
    study = study_in(tmp_path)
    ended = on_ray(study, "--shared-gpu", "--ray-gpus", "0.5", "--shard", "1/2")
    assert ended.returncode == 0, ended.stderr
    (told,) = (tmp_path / "marks").glob("process-*")
    assert json.loads(told.read_text())["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    states = [json.loads(p.read_bytes()) for p in tmp_path.glob("store/runs/*/status.json")]
    assert len({state["pid"] for state in states}) == 2  # a process ends with its run


@pytest.mark.study
def test_an_interrupted_sweep_leaves_no_process_and_goes_on(tmp_path):
    study = study_in(tmp_path)
    command = [sys.executable, study.name, "sweep", "--store", "store", "--launcher", "ray"]
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in case ours is to ignore it
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [*command, "--ray-retries", "99"],
            cwd=tmp_path,
            stderr=said,
            env=environ(tmp_path),
        )
        signal.signal(signal.SIGINT, before)
        while not list((tmp_path / "store").glob("journal.jsonl")):
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "the same command goes on" in (tmp_path / "said").read_text()
    homes = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"HOME={tmp_path}\0".encode() in _bytes(path)
    ]
    assert homes == []
    assert not list((tmp_path / "store" / "locks").glob("sweep-*"))
    assert on_ray(study, "--shard", "1/2").returncode == 0


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_cannot_be_is_said_at_once(base, tmp_path, capsys, monkeypatch):
    store = Store(tmp_path)
    for options, message in (
        ({"cpus": 0}, "the first is above 0"),
        ({"retries": -1}, "none of them below"),
        ({"gpus": 1.5}, "only whole ones"),
    ):
        with pytest.raises(ValueError, match=message):
            list(experiment.OnRay(**options)([base], store))
    with pytest.raises(ValueError, match="memory of this process alone"):
        list(experiment.OnRay()([base], experiment.opened("memory://store")))
    with pytest.raises(ConnectionError, match="no Ray cluster to be had at '127.0.0.1:1'"):
        list(experiment.OnRay(address="127.0.0.1:1")([base], store))
    assert not list(tmp_path.glob("locks/*"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["sweep", "--launcher", "ray", "--store", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        experiment.main(base, (), command)
    assert ended.value.code == 2 and "pip install 'jaxmeter[ray]'" in capsys.readouterr().err


# --- Who starts when -----------------------------------------------------------------------------


class Stages:
    """Runs whose stages have keys of their own making; a file stands for an entry."""

    def __init__(self, folder: Path, **runs: str) -> None:
        self.folder, self.runs = folder, runs

    def look(self, run: str) -> graph.Ahead:
        there = itertools.takewhile(lambda key: (self.folder / key).exists(), self.runs[run])
        keys = [*there]
        first = next(iter(self.runs[run][len(keys) :]), None)
        place = None if first is None else self.folder / first
        return graph.Ahead(dict(zip(keys, keys, strict=True)), first, place)

    def compute(self, key: str) -> None:
        (self.folder / key).touch()


def test_of_runs_that_share_a_stage_one_starts_and_the_others_follow(tmp_path):
    stages = Stages(tmp_path, a="rsx", b="rsy", c="rsz", d="RSX", e="RSY", f="RSZ")
    line = StageQueue([*"abcdef"], stages.look)
    assert [line.next(), line.next(), line.next()] == [0, 3, None]
    stages.compute("r")
    line.passed(0)
    assert line.next() is None  # its next stage is theirs, too
    stages.compute("s")
    line.passed(0)
    assert [line.next(), line.next(), line.next()] == [1, 2, None]
    line.ended(3)  # it failed: one tries again, before the others
    line.again(3)
    assert [line.next(), line.next()] == [3, None]
    for key in "RSX":
        stages.compute(key)
    line.ended(3, done=True)
    assert line.next() == 4
    line.ended(4)  # another sweep is at it
    line.again(4, seconds=60)
    assert [line.next(), line.next(), len(line)] == [5, None, 1]


def test_what_the_store_does_not_show_is_at_work_until_its_run_ends(tmp_path):
    stages = Stages(tmp_path, a="rx", b="ry", c="rz", d="Rx")
    line = StageQueue([*"abcd"], stages.look)
    assert [line.next(), line.next()] == [0, 3]
    line.passed(0)
    assert line.next() is None
    line.ended(0, done=True)
    assert [line.next(), line.next(), line.next()] == [1, 2, None]


@pytest.mark.parametrize("references", [False, True])
def test_the_keys_ahead_are_those_that_a_run_writes(base, tmp_path, references):
    """At each stage of a run, the first that is not there is the one that it then computes."""
    base = replace(base, target=fatal_study.Fatal(folder=tmp_path))
    changes: list[dict] = [{}, {"known": 20}]
    if references:
        models = experiment.ShadowModels(k=4, recipe=RecipeConfig(epochs=1))
        changes = [{"references": models, "attacks": (*base.attacks, jm.Lira())}]
    for change in changes:
        config = replace(base, **change)
        contents, store, seen = runs.contents_of(config), Store(tmp_path), {}

        def look(label, done, total, seen=seen, config=config, contents=contents, store=store):
            if (done, total) == (0, 1):
                seen[label] = graph.ahead(config, store, contents)

        outcome = experiment.attempt(config, tmp_path, progress=look)
        assert outcome.state == "done", outcome.error
        status = json.loads((tmp_path / "runs" / outcome.run / "status.json").read_text())
        labels = [*seen]
        written = dict(zip(labels, (name.split("/")[1] for name in status["entries"]), strict=True))
        for i, label in enumerate(labels):
            if label in outcome.computed:
                assert seen[label].keys == {name: written[name] for name in labels[: i + 1]}
                assert seen[label].first == written[label]
                assert seen[label].is_there()  # by now
        whole = graph.ahead(config, store, contents)
        assert (whole.keys, whole.first) == (written, None)
        assert "layers" in written
        assert len(written) <= graph.most_stages(config)
        other = graph.ahead(config, store, contents, {"device": "another"})
        assert [*other.keys] == ["records"] and other.first != written["records"]


# --- The study's source, and other machines ------------------------------------------------------


def errand(store: Path, **changes) -> worker.Task:
    parts = {"roots": (), "files": ()}
    given = {"study": "fatal", "store": str(store), "token": None, "folder": os.getcwd()}
    return worker.Task(**given | {"shipment": source.SourceBundle(**parts)} | changes)


def test_a_studys_source_is_known_where_it_is_not(base, tmp_path, monkeypatch):
    packed = source.packed([base])
    assert packed.roots == ("fatal_study",)
    assert [name for name, _, _ in packed.files] == ["fatal_study", "fatal_width"]
    before = list(sys.path)
    for name in ("fatal_study", "fatal_width"):
        monkeypatch.delitem(sys.modules, name)
    away = tuple((name, f"/away/{name}.py", content) for name, _, content in packed.files)
    source.unpacked(replace(packed, files=away))
    there = sys.modules["fatal_study"]
    assert there is not fatal_study and not str(there.__file__).startswith(str(REPOSITORY))
    config = experiment.from_json(experiment.to_json(base))
    assert type(config) is there.Study
    assert experiment.name_of(config) == experiment.name_of(base)
    sys.path[:] = before
    for name in ("fatal_study", "fatal_width"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("runs_at_once", b"import sys\nsys.exit(2)", "runs when it is imported"),
        ("needs_more", b"import no_such_package", "No module named 'no_such_package'"),
        ("random", b"", "has the name of a module, random. Rename it"),
    ],
)
def test_a_source_that_cannot_be_imported_says_why(name, content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    shipment = source.SourceBundle(roots=(name,), files=((name, f"/away/{name}.py", content),))
    outcome = worker.attempted("{}", "", errand(tmp_path, shipment=shipment), print)
    assert outcome is not None and outcome.state == "failed" and message in str(outcome.error)


def test_types_of_a_notebook_are_refused(base, monkeypatch):
    class Prompt(fatal_study.Fatal):
        pass

    monkeypatch.setattr(Prompt, "__module__", "__main__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(experiment.ConfigError, match="Put them into a file"):
        source.packed([replace(base, target=Prompt(folder=Path()))])


def test_a_worker_refuses_another_store_and_other_code(base, tmp_path):
    base = replace(base, target=fatal_study.Fatal(folder=tmp_path))
    text, code, posts = experiment.to_json(base), graph.code(base), []

    def post(*words):
        posts.append(words)

    strange = worker.attempted(text, code, errand(tmp_path, token="locks/sweep-1"), post)
    assert strange is not None and "is not the sweep's store" in str(strange.error)
    other = worker.attempted(text, "0" * 64, errand(tmp_path), post)
    assert other is not None and "other code than the sweep" in str(other.error)
    assert not posts
    with disk.locked(Store(tmp_path).lock("runs", experiment.name_of(base))):
        assert worker.attempted(text, code, errand(tmp_path), post) is None
    done = worker.attempted(text, code, errand(tmp_path), post)
    assert done is not None and done.state == "done"
    assert ("records", 0, 1) in posts and ("metrics", 1, 1) in posts


def test_processes_that_share_a_machine_are_told_their_share():
    cpu = worker.environment(0.5, 0, {"KERAS_BACKEND": "jax", "SECRET": "x"})
    assert cpu == {"PJRT_NPROC": "1", "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    assert worker.environment(4, 1, {"JAX_PLATFORMS": "cpu"}) == {"PJRT_NPROC": "4"}
    asked = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2", "PJRT_NPROC": "3"}
    assert worker.environment(1, 0.25, asked) == asked


# --- SLURM ---------------------------------------------------------------------------------------


def test_the_slurm_template_computes_its_part(tmp_path):
    script = REPOSITORY / "docs" / "sweep.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PJRT_NPROC" "$@"\n')
    python.chmod(0o755)
    given = {"STUDY": "a study.py", "STORE": "/shared/store", "PYTHON": str(python)}
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "4"}
    ended = subprocess.run(
        ["bash", str(script)], env={**os.environ, **given, **slurm}, capture_output=True, text=True
    )
    assert ended.stdout == "4 a study.py sweep --store /shared/store --shard 3/8\n"
    assert "#SBATCH --array=1-8\n" in script.read_text()
    missing = subprocess.run(["bash", str(script)], env={"PATH": os.environ["PATH"]}, stderr=-1)
    assert missing.returncode != 0 and b"name the study" in missing.stderr
