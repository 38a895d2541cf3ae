"""The store under fire: killed processes, two at once, damage, full disks, no right to write."""

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import keras
import pytest

import jaxmeter as jm
from jaxmeter import disk, experiment
from jaxmeter.experiment import results
from jaxmeter.experiment.runs import maintenance, run
from jaxmeter.experiment.store.files import FORMAT, sealed
from jaxmeter.experiment.store.store import MARK, Store, StoreError

SAME = ("config.json", "results.json", "summary.json", "scores.npz")


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A small classifier of digits in a file."""
    path = tmp_path_factory.mktemp("target") / "target.keras"
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, "softmax", name="out")]
    keras.Sequential([keras.layers.Input((8, 8, 1)), *layers]).save(path)
    return path


@pytest.fixture
def config(target) -> experiment.Config:
    return experiment.Config(
        study="small",
        seed=0,
        data=experiment.Digits(members=100, nonmembers=100),
        target=experiment.TargetFile(path=target),
        attacks=(jm.NegativeLoss(), jm.GradientNorm()),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME}


def all_files(store: Path) -> dict[str, dict[str, bytes]]:
    return {folder.name: files(folder) for folder in (store / "runs").iterdir()}


def journal(store: Path) -> tuple[Counter, Counter]:
    """How often each entry was begun and completed."""
    lines = [json.loads(line) for line in (store / "journal.jsonl").read_text().splitlines()]
    begun, completed = (
        Counter((line["stage"], line["key"]) for line in lines if line["event"] == event)
        for event in ("computing", "computed")
    )
    return begun, completed


# --- Killed --------------------------------------------------------------------------------------


def killed(store: Path, target: str, plan: list, compiled: Path | None = None) -> dict:
    """What killing.py says; XLA's programs come from `compiled` if it is given, to save time."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(store), target, json.dumps(plan)],
        capture_output=True,
        text=True,
        timeout=900,
        env={
            **os.environ,
            "PYTHONPATH": str(script.parents[1]),
            **(kept if compiled else {}),
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_killed(
    tmp_path: Path, target: str, kills: int, longest: float, compiled: Path | None = None
) -> None:
    """24 runs, killed at random moments and file operations, against the same runs unbroken."""
    chance = random.Random(0)
    moments = [chance.uniform(0.1, longest) for _ in range(kills // 2)]
    operations = [str(chance.randint(1, 150)) for _ in range(kills // 2)]
    plan = [item for pair in zip(operations, moments, strict=True) for item in pair]
    unbroken = killed(tmp_path / "unbroken", target, [None], compiled)
    broken = killed(tmp_path / "broken", target, [*plan, None], compiled)
    ends = [end for (end,) in broken["ends"][:-1]]
    assert broken["ends"][-1] == unbroken["ends"][-1] == [0]
    assert broken["damage"] == []
    assert set(ends) <= {-9, 0}, ends
    assert ends.count(-9) >= kills / 2, ends  # the last ones may come when all is done
    expected = all_files(tmp_path / "unbroken")
    assert len(expected) == 24
    assert all_files(tmp_path / "broken") == expected
    begun, completed = journal(tmp_path / "broken")
    assert max(completed.values()) == 1  # nothing that was complete was computed again
    assert sum(begun.values()) - len(begun) <= ends.count(-9)  # one stage in flight at a kill
    once, _ = journal(tmp_path / "unbroken")
    assert set(once) == set(begun) and set(once.values()) == {1}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def test_a_sweep_killed_six_times_ends_in_the_same_bytes(tmp_path, target, compiled):
    check_killed(tmp_path, str(target), kills=6, longest=0.8, compiled=compiled)


@pytest.mark.study
@pytest.mark.parametrize(("trains", "longest"), [(False, 0.6), (True, 10.0)])
def test_a_sweep_killed_twenty_times_ends_in_the_same_bytes(trains, longest, tmp_path, target):
    check_killed(tmp_path, "train" if trains else str(target), kills=20, longest=longest)


def test_two_sweeps_at_once_share_the_work(tmp_path, target, compiled):
    found = killed(tmp_path / "store", str(target), [[None, None]], compiled)
    assert found == {"ends": [[0, 0]], "damage": []}
    begun, completed = journal(tmp_path / "store")
    assert set(begun.values()) == set(completed.values()) == {1}
    assert len(all_files(tmp_path / "store")) == 24


# --- Damaged -------------------------------------------------------------------------------------


def entry(store: Path, stage: str) -> Path:
    return next(p for p in sorted((store / "stages" / stage).iterdir()) if p.name[0] != ".")


def swapped(store: Path) -> None:
    one, two = (p for p in (store / "stages" / "attack").iterdir() if p.name[0] != ".")
    aside = store / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def renamed(store: Path) -> None:
    place = entry(store, "metrics")
    other = entry(store, "signals")
    shutil.rmtree(other)
    shutil.copytree(place, other)


def edited(store: Path) -> None:
    path = entry(store, "attack") / "found.npz"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def truncated(store: Path) -> None:
    path = next((entry(store, "signals") / "signals").glob("*.npy"))
    os.truncate(path, path.stat().st_size - 8)


def manifest_edited(store: Path) -> None:
    path = entry(store, "records") / "entry.json"
    path.write_text(path.read_text().replace('"seconds"', '"Seconds"'))


def manifest_missing(store: Path) -> None:
    (entry(store, "intake") / "entry.json").unlink()


def file_added(store: Path) -> None:
    (entry(store, "intake") / "more.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [swapped, renamed, edited, truncated, manifest_edited, manifest_missing, file_added],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_noticed_said_and_computed_again(damage, config, tmp_path):
    said: list[str] = []
    store = Store(tmp_path, said.append)
    folder = experiment.run(config, store)
    expected = files(folder)
    assert experiment.verify(store) == () and not said
    damage(tmp_path)
    found = experiment.verify(store)
    assert found
    shutil.rmtree(folder)  # else it is finished and nothing of the cache is looked at
    # The same process, which has read these entries before, and one that has not.
    made = run.attempt(config, Store(tmp_path, said.append) if damage is edited else store)
    assert made.computed and files(folder) == expected
    assert len(said) == len(found) and "is damaged and is computed again" in said[0]
    assert experiment.verify(store) == ()
    assert len(list((tmp_path / "damaged").iterdir())) == len(found)


def test_a_finished_run_that_was_edited_is_put_together_again(config, tmp_path):
    said: list[str] = []
    store = Store(tmp_path, said.append)
    folder = experiment.run(config, store)
    expected = files(folder)
    for name in (*SAME, "status.json"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"1", b"2") + b" ")
        made = run.attempt(config, store)
        assert made.state == "done" and not made.computed and len(made.cached) == 7
        assert files(folder) == expected
    assert any("was changed since it was written" in text for text in said)


def test_a_run_in_the_place_of_another_is_not_taken_for_it(config, tmp_path):
    one = experiment.run(config, tmp_path)
    two = experiment.run(replace(config, known=20), tmp_path)
    expected = files(two)
    shutil.rmtree(two)
    shutil.copytree(one, two)
    assert files(experiment.run(replace(config, known=20), tmp_path)) == expected


# --- Formats -------------------------------------------------------------------------------------


def of_format(store: Path, found: object) -> None:
    """Makes a store one of another format, as it would lie there."""
    mark = {"tool": "jaxmeter", "format": found}
    (store / MARK).write_bytes(sealed(mark))


def of_the_first_format(store: Path, _: object) -> None:
    """Makes a store one of before there was a store.json."""
    (store / MARK).unlink()
    for path in (*store.glob("runs/*/*.json"), *store.glob("stages/*/*/entry.json")):
        path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 1'))


USES = {
    "run": lambda config, store: experiment.run(config, store),
    "attempt": lambda config, store: experiment.attempt(config, store),
    "sweep": lambda config, store: experiment.sweep(config, (), store),
    "status": lambda config, store: experiment.status("small", store),
    "tidy": lambda config, store: results.tidy(store, "small"),
    "index": lambda config, store: results.index(store, "small"),
    "gc": lambda config, store: experiment.gc(store, remove=True),
    "verify": lambda config, store: experiment.verify(store),
    "one already open": lambda config, store: experiment.verify(Store(store)),
}


@pytest.mark.parametrize(
    ("change", "found"),
    [(of_the_first_format, 1), (of_format, FORMAT + 1), (of_format, "?")],
)
def test_a_store_of_another_format_is_refused_and_left_as_it_is(change, found, config, tmp_path):
    store = tmp_path / "store"
    experiment.run(config, store)
    assert json.loads((store / MARK).read_text())["format"] == FORMAT
    change(store, found)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    said = rf"^the store {re.escape(str(store))} has format {re.escape(str(found))}, .*: name a new"
    for use in USES.values():
        with pytest.raises(StoreError, match=said):
            use(config, store)
    with pytest.raises(StoreError, match=said), Store(store).writable():
        pass
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_store_of_another_format_at_a_url_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url, root = f"memory://{tmp_path.name}/store", f"/{tmp_path.name}/store"
    experiment.run(config, url)
    there = fsspec.filesystem("memory")
    assert json.loads(there.cat_file(f"{root}/{MARK}"))["format"] == FORMAT
    assert experiment.verify(url) == () and len(experiment.status("small", url)) == 1
    there.rm_file(f"{root}/{MARK}")
    assert len(experiment.status("small", url)) == 1  # what it holds says it
    for path in there.find(root):
        old = there.cat_file(path)
        there.pipe_file(path, old.replace(f'"format": {FORMAT}'.encode(), b'"format": 1'))
    for name in ("cache", "another machine"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        for use in (USES["run"], USES["status"], USES["tidy"]):
            with pytest.raises(StoreError, match=f"the store {url} has format 1, "):
                use(config, url)


def test_a_store_json_that_is_damaged_or_gone_is_named_and_written_again(config, tmp_path):
    folder = experiment.run(config, tmp_path)
    mark = (tmp_path / MARK).read_bytes()
    for content in (b"", b"{}", mark[:-9], mark.replace(b"2", b"1"), None):
        (tmp_path / MARK).unlink()
        if content is not None:
            (tmp_path / MARK).write_bytes(content)
            assert [damage.path for damage in experiment.verify(tmp_path)] == [tmp_path / MARK]
        assert results.tidy(tmp_path, "small").num_rows == 2
        assert [outcome.state for outcome in experiment.status("small", tmp_path)] == ["done"]
        shutil.rmtree(folder)
        assert not run.attempt(config, tmp_path).computed
        assert (tmp_path / MARK).read_bytes() == mark and experiment.verify(tmp_path) == ()


# --- Full, read-only -----------------------------------------------------------------------------


def test_a_full_disk_fails_the_run_and_leaves_nothing_behind(config, tmp_path, monkeypatch):
    sync = os.fsync

    def full(file: int) -> None:
        where = os.readlink(f"/proc/self/fd/{file}")
        if "/signals/" in where and where.endswith(".npy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)
        sync(file)

    other = replace(config, seed=1)
    experiment.run(other, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        summary = experiment.sweep(config, {"seed": (0, 1)}, tmp_path)
    failed, done = summary.outcomes
    assert failed.state == "failed" and "No space left" in str(failed.error)
    assert "in stage signals" in str(failed.error) and done.state == "done"
    assert not list(tmp_path.rglob("*.tmp"))
    seen = {outcome.run: outcome for outcome in experiment.status("small", tmp_path)}
    assert seen[failed.run].state == "failed" and seen[failed.run].error == failed.error
    status = json.loads((tmp_path / "runs" / failed.run / "status.json").read_bytes())
    assert "Traceback" in status["traceback"] and len(status["entries"]) == 2
    assert experiment.sweep(config, {"seed": (0, 1)}, tmp_path).failed == ()


@contextmanager
def unwritable(store: Path) -> Iterator[None]:
    """Nobody may write to the store; root, who may write to everything, becomes nobody."""
    paths, user = (store, *store.rglob("*")), os.geteuid()
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path in paths:
            path.chmod(0o755)


def test_a_store_without_the_right_to_write_can_be_read(config):
    with tempfile.TemporaryDirectory(prefix="jaxmeter-") as place:  # tmp_path is its owner's alone
        os.chmod(place, 0o755)
        readable = Path(place, "target.keras")
        shutil.copy(config.target.path, readable)
        readable.chmod(0o644)
        config = replace(config, target=experiment.TargetFile(path=readable))
        store = Path(place, "store")
        expected = files(experiment.run(config, store))
        with unwritable(store):
            assert files(experiment.run(config, store)) == expected
            assert [outcome.state for outcome in experiment.status("small", store)] == ["done"]
            assert experiment.verify(store) == ()
            with pytest.raises(StoreError, match=r"cannot be written.*status, table, plot"):
                experiment.run(replace(config, known=20), store)
            done, failed = experiment.sweep(config, {"known": (None, 20)}, store).outcomes
        assert done.state == "done" and "cannot be written" in str(failed.error)


def test_a_file_system_without_locks_is_refused(config, tmp_path, monkeypatch):
    def flock(file: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(disk.fcntl, "flock", flock)
    made = run.attempt(config, tmp_path)
    assert made.state == "failed" and "has no locks (Function not imp" in str(made.error)
    assert not list(tmp_path.glob("stages/*/*"))


# --- Cleaned up ----------------------------------------------------------------------------------


def test_gc_lists_and_removes_what_no_kept_run_refers_to(config, tmp_path):
    store = Store(tmp_path)
    kept = experiment.run(config, store)
    other = experiment.run(replace(config, known=20), store)
    assert experiment.gc(store) == ()
    left = tmp_path / "stages" / "signals" / f".{'0' * 64}.12345678.tmp"
    left.mkdir()
    useless = experiment.gc(store, keep=[kept.name])
    assert left in useless and len(useless) == 4  # two attacks and metrics of the other run
    assert all(path.exists() for path in useless)
    with disk.locked(tmp_path / "locks" / "store.lock", shared=True):
        with pytest.raises(StoreError, match="in progress"):
            experiment.gc(store, keep=[kept.name], remove=True)
    assert experiment.gc(store, keep=[kept.name], remove=True) == useless
    assert not any(path.exists() for path in useless) and other.is_dir()
    assert len(list(maintenance.entries(store))) == 7
    before = files(other)
    shutil.rmtree(other)
    assert len(run.attempt(replace(config, known=20), store).computed) == 3
    assert files(other) == before


def test_a_store_can_be_moved_and_its_name_does_not_matter(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "données 1" / "ä b.keras"
    data.parent.mkdir()
    shutil.copy(config.target.path, data)
    config = replace(config, target=experiment.TargetFile(path=data))
    first = experiment.run(config, tmp_path / "a store, é")
    expected = files(first)
    moved = (tmp_path / "a store, é").rename(tmp_path / "elsewhere")
    again = run.attempt(config, moved)
    assert (again.state, again.computed, again.cached) == ("done", (), ())
    shutil.rmtree(moved / "runs" / first.name)
    assert run.attempt(config, moved).computed == () and experiment.verify(moved) == ()
    assert files(moved / "runs" / first.name) == expected
    there = f"file://{tmp_path}/at a URL"
    assert run.attempt(config, Path(there)).state == "done"
    assert files(tmp_path / "at a URL" / "runs" / first.name) == expected


def test_an_interrupted_run_is_seen_as_one(config, tmp_path):
    folder = experiment.run(config, tmp_path)
    status = json.loads((folder / "status.json").read_bytes())
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    assert [o.state for o in experiment.status("small", tmp_path)] == ["interrupted"]
    with disk.locked(Store(tmp_path).lock("runs", folder.name)):
        assert [o.state for o in experiment.status("small", tmp_path)] == ["running"]
        with pytest.raises(disk.Busy):
            experiment.run(config, tmp_path, wait=False)
    assert experiment.status("another", tmp_path) == ()


# --- At a URL ------------------------------------------------------------------------------------


def test_a_store_at_a_url_is_shared_by_working_copies(config, tmp_path, monkeypatch):
    url, root = f"memory://{tmp_path.name}/store", f"/{tmp_path.name}/store"
    there = fsspec.filesystem("memory")

    def here(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    here("one")
    first = run.attempt(config, url)
    assert len(first.computed) == 7
    expected = files(experiment.opened(url).runs / first.run)
    here("two")  # another machine: the run is there, nothing is computed
    again = run.attempt(config, url)
    assert (again.run, again.state, again.computed, again.cached) == (first.run, "done", (), ())
    assert files(experiment.opened(url).runs / first.run) == expected
    here("three")  # a run beside it shares what it can
    assert len(run.attempt(replace(config, known=20), Path(url)).computed) == 3
    here("four")
    assert [outcome.state for outcome in experiment.status("small", url)] == ["done", "done"]

    here("five")  # an upload that was broken off, and a damaged one, are not used
    stages = there.find(f"{root}/stages")
    there.rm_file(next(p for p in stages if "/records/" in p and p.endswith("entry.json")))
    signals = next(p for p in stages if "/signals/" in p and p.endswith("000.npy"))
    there.pipe_file(signals, there.cat_file(signals)[:-9])
    there.rm(f"{root}/runs/{first.run}", recursive=True)
    said: list[str] = []
    store = experiment.opened(url, said.append)
    again = run.attempt(config, store)
    assert again.computed == ("records", "signals") and len(again.cached) == 5
    assert files(store.runs / first.run) == expected
    assert len(said) == 1 and "is damaged and is computed again" in said[0]

    here("six")  # what was broken off or damaged there is whole again
    there.rm(f"{root}/runs", recursive=True)
    assert len(run.attempt(config, url).cached) == 7

    there.rm(f"{root}/runs", recursive=True)  # stopped between its end and the upload
    assert run.attempt(config, url).cached == () and there.exists(f"{root}/runs/{first.run}")
