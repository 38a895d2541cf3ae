"""Stores of strangers, damaged ones, and what others may read of ours.

A canary is a file that must not be written, changed, removed or readable.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import jax
import keras
import numpy as np
import pytest
import stores
from matplotlib.figure import Figure

import jaxmeter as jm
from jaxmeter import disk, experiment
from jaxmeter.cli import demo
from jaxmeter.data.npz import write_npz
from jaxmeter.experiment import results
from jaxmeter.experiment.results import reports
from jaxmeter.experiment.runs import run, states
from jaxmeter.experiment.store.store import Store, StoreWarning
from jaxmeter.inference.attack import History
from jaxmeter.meter import logs
from jaxmeter.report.report import Report
from jaxmeter.shadow import checkpoint

LITTER = (".DS_Store", "._scores.npz", "Thumbs.db", "desktop.ini", ".nfs000000000a1b2c3d00000001")
HEX = "0123456789ab"


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A small classifier of digits in a file."""
    path = tmp_path_factory.mktemp("target") / "target.keras"
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, "softmax", name="out")]
    keras.Sequential([keras.layers.Input((8, 8, 1)), *layers]).save(path)
    return path


@pytest.fixture(scope="module")
def config(target) -> experiment.Config:
    return experiment.Config(
        study="small",
        seed=0,
        data=experiment.Digits(members=60, nonmembers=60),
        target=experiment.TargetFile(path=target),
        attacks=(jm.NegativeLoss(),),
    )


@pytest.fixture(scope="module")
def computed(config, tmp_path_factory) -> Path:
    """A store with a finished run; not to be changed."""
    store = tmp_path_factory.mktemp("computed") / "store"
    experiment.run(config, store)
    return store


@pytest.fixture
def store(computed, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(computed, tmp_path / "store"))


def only_run(store: Path) -> Path:
    (folder,) = (path for path in (store / "runs").iterdir() if path.is_dir())
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- Names that lead elsewhere -------------------------------------------------------------------

ODD = (
    *("", ".", "..", "../x", "a/../../x", "a/..", "/etc/x", "//x", "a//b", "a/", "./a", "a/./b"),
    *("..\\x", "a\\b", "c:x", "C:\\x", "a:b", "x\0", "a\nb", "a\x7fb", "a\x85b", "\x1b[2J"),
    *("nul", "NUL.txt", "a/con", "aux.", "COM1", "lpt9.json", "conin$", "x.", "x ", "a. /b"),
    *("\udc80", "a" * 256, None, 3, b"x"),
)


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_a_name_that_is_no_plain_path_is_refused(name, tmp_path):
    with pytest.raises(disk.UnsafeName, match="no plain name"):
        disk.below(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["a", "a/b.npz", ".hidden", "..a", "a..b", "null", "com10", "é", "a b", "a" * 255]
)
def test_a_plain_name_is_a_path_below(name, tmp_path):
    assert disk.below(tmp_path, name) == tmp_path / name


def test_links_are_followed_within_a_folder_alone(tmp_path):
    (tmp_path / "root" / "real").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for name, to in {"in": "real", "up": "..", "out": "../out", "loop": "loop"}.items():
        (tmp_path / "root" / name).symlink_to(to)
    (tmp_path / "alias").symlink_to("root")
    for root in (tmp_path / "root", tmp_path / "alias"):
        assert disk.below(root, "in/x") == root / "in/x"
        for name in ("up", "up/x", "out", "out/x", "up/out/x"):
            with pytest.raises(disk.UnsafeName, match="link"):
                disk.below(root, name)


def uploaded(name: str, folder: Path, to: str) -> tuple[dict[str, bytes], str]:
    """A run's folder in fsspec's memory; its files by key, and the store's root there."""
    files = fsspec.filesystem("memory")
    root = f"/{name}"
    for path in folder.iterdir():
        files.pipe_file(f"{root}/runs/{to}/{path.name}", path.read_bytes())
    return files.store, root


EVIL = (
    *("../../../canary", "../../canary", "../canary", "a/../../../canary", "/canary", "a//canary"),
    *("a\\..\\canary", "C:canary", "nul", "x\ncanary", "status.json/canary"),
)


@pytest.mark.parametrize("key", EVIL, ids=repr)
def test_a_store_at_a_url_writes_below_its_working_copy_alone(key, tmp_path, monkeypatch):
    """Keys of an object store may hold anything; others are shown, and the odd one is named."""
    made = stores.finished_run(tmp_path / "made", "s", {"seed": 0}, stores.rows({"learned": 1.0}))
    content, root = uploaded(f"{tmp_path.name}-{abs(hash(key))}", made, made.name)
    odd = f"odd-{HEX}"
    uploaded(root[1:], made, odd)
    memory = type(fsspec.filesystem("memory"))
    find = memory.find

    def listed(self, path, *args, **kwargs):
        more = [f"{path}/{key}"] if path.rstrip("/").endswith(odd) else []
        return [*find(self, path, *args, **kwargs), *more]

    def got(self, rpath, lpath, *args, **kwargs):
        body = content.get(rpath)
        Path(lpath).write_bytes(b"canary" if body is None else body.getvalue())

    monkeypatch.setattr(memory, "find", listed)
    monkeypatch.setattr(memory, "get_file", got)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(StoreWarning, match=f"{odd} is not fetched"):
        table = results.tidy(f"memory:/{root}")
    assert set(table["run"].to_pylist()) == {made.name}
    assert not [path for path in tmp_path.rglob("*") if "canary" in path.name]
    place = experiment.opened(f"memory:/{root}").path
    assert {path.name for path in place.iterdir()} <= {"runs", "locks"}


@pytest.mark.parametrize(
    "name", ["..", ".", "../..", f"..-{HEX}/../x", "a\\b", "\0", "x"], ids=repr
)
def test_a_listing_names_runs_and_nothing_else(name, tmp_path, monkeypatch):
    made = stores.finished_run(tmp_path / "made", "s", {"seed": 0}, stores.rows({"learned": 1.0}))
    _, root = uploaded(f"{tmp_path.name}-ls", made, made.name)
    memory = type(fsspec.filesystem("memory"))
    ls = memory.ls

    def listed(self, path, detail=True, **kwargs):
        found = ls(self, path, detail=detail, **kwargs)
        return [*found, f"{root}/runs/{name}"] if not detail and path.endswith("runs") else found

    monkeypatch.setattr(memory, "ls", listed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert [outcome.run for outcome in experiment.status("s", f"memory:/{root}")] == [made.name]
    place = experiment.opened(f"memory:/{root}").path
    assert {path.name for path in place.iterdir()} <= {"runs", "locks"}
    assert [path.name for path in (place / "runs").iterdir()] == [made.name]


def test_a_file_that_is_a_folder_too_is_not_fetched(store, tmp_path, monkeypatch):
    made = only_run(store)
    name = f"{tmp_path.name}-both"
    files, root = uploaded(name, made, made.name)
    odd = f"odd-{HEX}"
    uploaded(name, made, odd)
    files[f"{root}/runs/{odd}/status.json/"] = files[f"{root}/runs/{odd}/status.json"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.warns(StoreWarning, match=f"{odd} is not fetched"):
        assert [o.run for o in experiment.status("small", f"memory:/{root}")] == [made.name]


def test_scores_that_unpack_to_far_more_than_their_file_are_damaged(store):
    place = only_run(store) / "scores.npz"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("is_member.npy", "w", force_zip64=True) as file:
            for _ in range(400):
                file.write(bytes(2**20))
    hashes = {"scores.npz": hashlib.sha256(place.read_bytes()).hexdigest()}
    with pytest.raises(reports.DamagedRun, match="are allowed"):
        reports.scores(SimpleNamespace(folder=place.parent, hashes=hashes, attacks=[]))


def test_a_stage_with_an_odd_key_is_computed_instead(config, tmp_path, monkeypatch):
    url = f"memory://{tmp_path.name}/store"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    first = run.attempt(config, url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    memory = type(fsspec.filesystem("memory"))
    find = memory.find

    def listed(self, path, *args, **kwargs):
        more = [f"{path}/../../../../canary"] if "/stages/" in path else []
        return [*find(self, path, *args, **kwargs), *more]

    monkeypatch.setattr(memory, "find", listed)
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}/store/runs", recursive=True)
    said: list[str] = []
    again = run.attempt(config, experiment.opened(url, said.append))
    assert again.state == "done" and set(again.computed) == set(first.computed)
    assert any("is not taken from" in text for text in said)
    assert not list(tmp_path.rglob("canary"))


def rewritten(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    """Changes a run's JSON file, and its hash in status.json, as a stranger would."""
    value = json.loads((folder / name).read_bytes())
    change(value)
    (folder / name).write_text(json.dumps(value))
    facts = json.loads((folder / "status.json").read_bytes())
    facts["files"][name] = run.digest_of((folder / name).read_bytes())
    (folder / "status.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("key", ["../../canary", "/tmp/canary", "a\\b", "..", "", 3, None, "c:d"])
def test_event_files_stay_in_their_folder(key, tmp_path):
    rows = stores.rows({"learned": 1.0})
    good = stores.finished_run(tmp_path / "store", "s", {"seed": 0}, rows)
    odd = stores.finished_run(tmp_path / "store", "s", {"seed": 1}, rows)

    def change(value: dict) -> None:
        value["attacks"][0]["key"] = key

    rewritten(odd, "results.json", change)
    before = set(tmp_path.iterdir())
    with pytest.warns(StoreWarning, match=f"{odd.name} has no event files: results.json"):
        (written,) = results.write_events(tmp_path / "store", "s", tmp_path / "out" / "events")
    assert written.parent == tmp_path / "out" / "events" / good.name
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["events"]


@pytest.mark.parametrize("study", ["..", ".", "a:b", "a\\b", "nul"])
def test_a_study_of_an_odd_name_writes_nothing(study, tmp_path):
    rows = stores.rows({"learned": 1.0})
    good = stores.finished_run(tmp_path / "store", "s", {"seed": 0}, rows)
    stores.finished_run(tmp_path / "store", study, {"seed": 1}, rows)
    noisy = pytest.warns(StoreWarning, match="cannot be named")
    with contextlib.nullcontext() if study[0] == "." else noisy:  # hidden: no run at all
        (written,) = results.write(tmp_path / "store")
    assert written == tmp_path / "store" / "studies" / "s" / "results.parquet"
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"runs", "studies"}
    assert good.is_dir()


def test_what_a_study_shows_is_not_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    store = tmp_path / "store"
    stores.small_study(store, seeds=1)
    for link in ("studies", "studies/sizes", "studies/sizes/figures", "studies/sizes/events"):
        (store / link).parent.mkdir(parents=True, exist_ok=True)
        (store / link).symlink_to(outside)
        inner = link.rpartition("/")[2]
        commands = {"figures": results.plot, "events": results.write_events}
        with pytest.raises(disk.UnsafeName, match="a link that leads out"):
            commands.get(inner, results.write)(store, "sizes")
        (store / link).unlink()
    assert not list(outside.iterdir())


def test_a_run_or_a_stage_is_not_written_through_a_link(config, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for place in ("runs", f"runs/{experiment.name_of(config)}", "stages", "stages/records"):
        store = tmp_path / place.replace("/", "-")
        (store / place).parent.mkdir(parents=True)
        (store / place).symlink_to(outside)
        outcome = run.attempt(config, store)
        assert outcome.state == "failed" and "a link that leads out" in str(outcome.error)
        assert not list(outside.iterdir())


def test_signals_are_read_from_their_folder_alone(tmp_path):
    signals = jm.signals.Signals(
        outputs={}, gradients={}, gradient_norms={}, scalars={}, loss=np.zeros(3), label=np.zeros(3)
    )
    from jaxmeter.signals import storage

    with storage.writing(tmp_path / "signals", signals):
        pass
    manifest = tmp_path / "signals" / "signals.json"
    facts = json.loads(manifest.read_text())
    np.save(tmp_path / "canary.npy", np.zeros(3))
    (tmp_path / "signals" / "link.npy").symlink_to("../canary.npy")
    (tmp_path / "signals" / "link").symlink_to("..")
    for name in (
        "../canary.npy",
        str(tmp_path / "canary.npy"),
        "link.npy",
        "link/canary.npy",
        "..",
    ):
        facts["arrays"][0]["file"] = name
        manifest.write_text(json.dumps(facts))
        with pytest.raises(ValueError, match="names a file outside its folder"):
            jm.signals.load(tmp_path / "signals")


# --- Damage --------------------------------------------------------------------------------------

RUN_FILES = (*states.FILES, "status.json")


def flips(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """One byte changed, at places all over a file; its ends among them."""
    random = np.random.default_rng(seed)
    places = {0, len(content) - 1, *random.integers(0, len(content), count).tolist()}
    for place in sorted(places):
        changed = bytearray(content)
        changed[place] ^= int(random.integers(1, 256))
        yield bytes(changed)


@pytest.mark.parametrize("name", [*RUN_FILES, "../../journal.jsonl"])
def test_verify_notices_a_changed_byte_of_every_file(name, store):
    assert experiment.verify(store) == ()
    path = (only_run(store) / name).resolve()
    before = path.read_bytes()
    for i, changed in enumerate(
        [*flips(before, 40, 0), before[:-1], before + b" ", before + b"[" * 9999]
    ):
        path.write_bytes(changed)
        assert [damage.path for damage in experiment.verify(store)] == [path], (i, changed[:80])
    path.write_bytes(before)
    assert experiment.verify(store) == ()


def test_whitespace_in_a_status_or_an_entry_counts(store):
    entry = next((store / "stages" / "metrics").iterdir())
    for path, place in ((only_run(store) / "status.json", None), (entry / "entry.json", entry)):
        before = path.read_bytes()
        path.write_text(json.dumps(json.loads(before), indent=1, sort_keys=True))
        assert [damage.path for damage in experiment.verify(store)] == [place or path]
        path.write_bytes(before)


@pytest.mark.parametrize(
    "files", [{}, None, [], 5, "x", {"../../x": "0" * 64}, {"results.json": 3}]
)
@pytest.mark.parametrize("missing", states.FILES)
def test_verify_misses_a_file_whatever_the_status_says(files, missing, store):
    folder = only_run(store)
    facts = json.loads((folder / "status.json").read_bytes())
    facts.pop("seal")  # as before there were seals
    (folder / "status.json").write_text(json.dumps({**facts, "files": files}))
    (folder / missing).unlink()
    found = experiment.verify(store)
    assert folder / "status.json" in [damage.path for damage in found]
    assert f"{missing} is missing." in [damage.reason for damage in found]


BROKEN = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "blank": lambda content: b" \n",
    "list": lambda content: b"[]",
    "text": lambda content: b'"x"',
    "number": lambda content: b"3",
    "null": lambda content: b"null",
    "nothing inside": lambda content: b"{}",
    "not UTF-8": lambda content: content.replace(b"small", b"sm\xffll") + b"\xff",
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "deep": lambda content: b"[" * 200_000,
    "deep inside": lambda content: b'{"state": ' + b"[" * 200_000,
    "long number": lambda content: b'{"state": 1' + b"0" * 10_000 + b"}",
    "not finite": lambda content: b'{"state": NaN}',
}


@pytest.mark.parametrize("how", BROKEN)
def test_every_command_names_a_damaged_status_and_goes_on(how, store, config):
    good, odd = only_run(store), store / "runs" / f"small-{HEX}"
    shutil.copytree(good, odd)
    path = odd / "status.json"
    path.write_bytes(BROKEN[how](path.read_bytes()))
    seen = {outcome.run: outcome for outcome in experiment.status("small", store)}
    assert seen[good.name].state == "done" and seen[odd.name].state == "damaged"
    assert "status.json" in str(seen[odd.name].error)
    assert path in [damage.path for damage in experiment.verify(store)]
    shows: list[Callable[[], object]] = [
        lambda: results.table(store, "small"),
        lambda: results.plot(store, "small", metrics=("auc",)),
        lambda: results.index(store, "small", reports=False),
        lambda: results.write_events(store, "small"),
    ]
    for show in shows[: 1 if how != "cut" else None]:
        with pytest.warns(StoreWarning, match=f"{odd.name}: .*status.json"):
            show()
    with pytest.warns(StoreWarning, match=rf"{odd.name}/status.json"):
        assert experiment.gc(store, remove=True) == ()
    assert run.attempt(config, store).cached == ()  # the good one is still done


@pytest.mark.parametrize("file", ["summary.json", "results.json", "config.json", "cost.json"])
@pytest.mark.parametrize("how", ["list", "nothing inside", "inner", "deep"])
def test_a_run_whose_files_hold_something_else_is_named(file, how, tmp_path):
    """Though their hashes are right, which is what a stranger would see to."""
    rows = stores.rows({"learned": 1.0})
    good = stores.finished_run(tmp_path / "store", "s", {"seed": 0}, rows)
    odd = stores.finished_run(tmp_path / "store", "s", {"seed": 1}, rows)
    value = json.loads((odd / file).read_bytes())
    if how == "inner":
        for name in ("attacks", "fields", "stages"):
            if name in value:
                value[name] = 7 if name != "attacks" else [7]
    content = json.dumps(value).encode() if how == "inner" else BROKEN[how](b"")
    (odd / file).write_bytes(content)
    facts = json.loads((odd / "status.json").read_bytes())
    facts["files"][file] = run.digest_of(content)
    (odd / "status.json").write_text(json.dumps(facts))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StoreWarning)
        table = results.tidy(tmp_path / "store", "s")
        page = results.index(tmp_path / "store", "s", reports=how == "inner")
        results.write_events(tmp_path / "store", "s")
    assert good.name in table["run"].to_pylist() and page.is_file()
    assert all(odd.name in str(warning.message) for warning in caught)
    assert caught or (file == "config.json" and how != "inner")  # which only a report reads


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(store):
    folder = only_run(store)
    (folder / "status.json").unlink()
    os.mkfifo(folder / "status.json")
    entry = next((store / "stages" / "metrics").iterdir())
    (entry / "results.json").unlink()
    os.mkfifo(entry / "results.json")
    assert experiment.status("small", store)[0].state == "damaged"
    assert {entry, folder / "status.json"} <= {damage.path for damage in experiment.verify(store)}


# --- Cleaning up ---------------------------------------------------------------------------------


def test_gc_after_an_interrupted_sweep_keeps_what_the_run_had_got(config, tmp_path, monkeypatch):
    """The second run is stopped in its last stage; what it had computed stays."""
    experiment.run(config, tmp_path)
    other = replace(config, seed=1)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("jaxmeter.experiment.stages.metrics.score", stop)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(other, tmp_path)
    states_of = {outcome.run: outcome.state for outcome in experiment.status("small", tmp_path)}
    assert sorted(states_of.values()) == ["done", "interrupted"]
    assert experiment.gc(tmp_path, remove=True) == ()
    again = run.attempt(other, tmp_path)
    assert again.computed == ("metrics",)


@pytest.mark.parametrize("killed", [True, False])
def test_gc_takes_nothing_of_a_run_that_does_not_say_what_it_has(killed, store):
    path = only_run(store) / "status.json"
    facts = json.loads(path.read_bytes())
    if killed:  # by a version that did not write entries while it ran
        facts = {k: facts[k] for k in ("error", "pid", "host", "python")} | {"state": "running"}
        path.write_text(json.dumps(facts))
    else:
        path.unlink()
    before = tree(store)
    with pytest.warns(StoreWarning, match="all entries stay"):
        assert experiment.gc(store, remove=True) == ()
    path.write_bytes(path.read_bytes() if killed else b"")
    assert {k: v for k, v in tree(store).items() if "locks" not in k and k != str(path)} == {
        k: v for k, v in before.items() if "locks" not in k and k != str(path)
    }


@pytest.mark.parametrize("place", range(12))
def test_gc_does_not_believe_a_status_with_a_flipped_byte(place, store):
    path = only_run(store) / "status.json"
    content = bytearray(path.read_bytes())
    at = content.index(b'"entries"') + 12 + place * 37
    content[at] = ord("a") if content[at] != ord("a") else ord("b")
    path.write_bytes(content)
    with pytest.warns(StoreWarning, match=r"status.json"):
        assert experiment.gc(store, remove=True) == ()


def test_gc_lists_what_is_useless_all_the_same(store):
    left = store / "stages" / "signals" / f".{'0' * 64}.12345678.tmp"
    left.mkdir()
    (only_run(store) / "status.json").write_text("{")
    with pytest.warns(StoreWarning):
        assert experiment.gc(store) == (left,)


def test_commands_end_with_1_and_name_what_is_damaged(store, config, capsys):
    (only_run(store) / "status.json").write_text('{"state": "do')
    for command in ("status", "verify", "gc"):
        with pytest.raises(SystemExit) as ended:
            experiment.main(config, (), [command, "--store", str(store)])
        said = capsys.readouterr()
        assert ended.value.code == 1 and "status.json" in said.out + said.err, command


def test_gc_takes_nothing_that_the_store_did_not_write(store, tmp_path):
    outside = tmp_path / "outside"
    foreign = [
        *(
            "stages/notes.txt",
            "stages/signals/Thumbs.db",
            "stages/signals/notes/x",
            "stages/.x.tmp/x",
        ),
        *("stages/signals/.notes.tmp/x", "runs/.notes.tmp/x", "damaged/mine/x", "locks/mine.lock"),
        *(f"runs/{only_run(store).name}/.notes.tmp", f"stages/mine/{'0' * 63}/x"),
        *(f"{place}/.DS_Store" for place in ("", "stages", "stages/signals", "runs", "damaged")),
    ]
    for name in foreign:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("canary")
    for name in (f"signals/{'0' * 64}/x", f"signals/.{'0' * 64}.12345678.tmp/x", "x.lock"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text("canary")
    (store / "stages" / "linked").symlink_to(outside / "signals")
    (store / "stages" / "signals" / ("1" * 64)).symlink_to(outside / "signals" / ("0" * 64))
    (store / "locks" / "linked").symlink_to(outside)
    assert experiment.gc(store, keep=(), remove=True)  # all entries there are
    assert all((store / name).read_text() == "canary" for name in foreign)
    assert len(tree(outside)) == 3


@pytest.mark.parametrize("name", LITTER)
def test_what_systems_leave_in_folders_damages_nothing_and_stays(name, store, config):
    folder = only_run(store)
    entries = [path for path in (store / "stages").glob("*/*")]
    inner = next((store / "stages" / "signals").glob("*/signals"))
    places = [store, folder, folder.parent, store / "stages", entries[0].parent, *entries, inner]
    for place in places:
        (place / name).write_text("canary")
    assert experiment.verify(store) == () and experiment.gc(store, remove=True) == ()
    assert [outcome.state for outcome in experiment.status("small", store)] == ["done"]
    assert run.attempt(config, store).cached == ()
    shutil.rmtree(folder)
    assert run.attempt(config, store).computed == ()
    assert all((place / name).read_text() == "canary" for place in places if place != folder)


def test_an_input_folder_has_the_same_content_with_litter(tmp_path):
    from jaxmeter.experiment.store.fingerprint import content_of

    (tmp_path / "model" / "assets").mkdir(parents=True)
    (tmp_path / "model" / "x").write_text("x")
    before = content_of(tmp_path / "model")
    (tmp_path / "model" / "assets" / ".DS_Store").write_text("y")
    assert content_of(tmp_path / "model") == before


def test_a_checkpoint_folder_keeps_what_others_put_there(tmp_path):
    folder = tmp_path / "models"
    with checkpoint.opened(folder, {"of": "x"}) as place:
        checkpoint.save(place, [0, 1], [np.zeros((2, 3), np.float32)])
    foreign = ["notes", "models-old", "models-0-1-copy", "x.orbax-checkpoint-tmp", ".hidden", "0"]
    for name in foreign:
        (folder / name).mkdir()
        (folder / name / "canary").write_text("canary")
    (folder / ".DS_Store").write_text("canary")
    (folder / "link").symlink_to(folder / "notes")
    cut = [folder / n for n in (".models-2-3.0a1b2c3d.tmp", "models-2-3.orbax-checkpoint-tmp-7")]
    for path in cut:
        path.mkdir()
    like = [jax.ShapeDtypeStruct((3,), np.float32)]
    with checkpoint.opened(folder, {"of": "x"}) as place:
        assert set(checkpoint.restore(place, like)) == {0, 1}
    assert all((folder / name / "canary").read_text() == "canary" for name in foreign)
    assert (folder / ".DS_Store").exists() and not any(path.exists() for path in cut)
    (folder / "models-5-5").mkdir()  # of that name, and no checkpoint
    (folder / "models-5-5" / "canary").write_text("canary")
    with checkpoint.opened(folder, {"of": "x"}) as place, pytest.raises(ValueError, match="5-5"):
        checkpoint.restore(place, like)
    assert (folder / "models-5-5" / "canary").exists()


def test_a_checkpoint_of_absurdly_many_models_is_refused_at_once(tmp_path):
    with checkpoint.opened(tmp_path / "models", {"of": "x"}) as place:
        checkpoint.save(place, [0, 1], [np.zeros((2, 3), np.float32)])
        (place / "models-0-1").rename(place / "models-0-999999999999999")
        with pytest.raises(ValueError, match="it was changed"):
            checkpoint.restore(place, [jax.ShapeDtypeStruct((3,), np.float32)])


# --- Who may read it -----------------------------------------------------------------------------


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> set[tuple[str, int]]:
    """("folder" or "file", mode) of all that is in a folder, and its own."""
    found = set()
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        assert not stat.S_ISLNK(mode)
        found.add(("folder" if stat.S_ISDIR(mode) else "file", stat.S_IMODE(mode)))
    return found


OURS = {("folder", 0o700), ("file", 0o600)}


def exposed(folder: Path) -> list[str]:
    """Files and folders below one that others can get at, by its and its parents' modes."""
    found = []
    for root, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if os.stat(os.path.join(root, name)).st_mode & 0o077]
        paths = [os.path.join(root, name) for name in (*inner, *files)]
        with contextlib.suppress(FileNotFoundError):
            found += [path for path in paths if os.stat(path).st_mode & 0o077]
    return found


@pytest.fixture
def watched(tmp_path, monkeypatch) -> Iterator[Path]:
    """An open folder, with nothing in it that others can get at whenever a file is completed."""
    tmp_path.chmod(0o777)
    looks = 0

    def looking(function: Callable) -> Callable:
        def called(*args, **kwargs):
            nonlocal looks
            looks += 1
            assert not exposed(tmp_path)
            return function(*args, **kwargs)

        return called

    for name in ("rename", "replace", "fsync"):
        monkeypatch.setattr(os, name, looking(getattr(os, name)))
    with umask(0):
        yield tmp_path
    assert looks


@pytest.fixture(scope="module")
def fits(tmp_path_factory) -> Path:
    """A store whose run has a fitted attack."""
    store = tmp_path_factory.mktemp("fits")
    stores.finished_run(store, "s", {"seed": 0}, stores.rows({"learned": 1.0}))
    return store


def test_a_store_is_its_owners_alone(config, fits, watched):
    mlp = experiment.Mlp(widths=(4,), training=experiment.Training(epochs=1))
    experiment.run(replace(config, target=mlp), watched / "a" / "store")
    results.write(watched / "a" / "store")
    results.write_table(results.table(watched / "a" / "store", "small"), watched / "tables")
    results.plot(watched / "a" / "store", "small", metrics=("auc",))
    results.index(watched / "a" / "store", "small")
    assert results.write_events(fits, "s", watched / "events")
    assert modes(watched / "a") == modes(watched / "tables") == modes(watched / "events") == OURS
    suffixes = {path.suffix for path in (watched / "a").rglob("*") if path.is_file()}
    assert suffixes >= {".json", ".npz", ".npy", ".jsonl", ".lock", ".html", ".svg", ".parquet"}
    assert ".keras" in suffixes and not exposed(watched)


def test_a_working_copy_is_its_owners_alone(config, watched, monkeypatch):
    monkeypatch.chdir(watched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(watched / "one"))
    url = f"memory://{watched.name}/private"
    experiment.run(config, url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(watched / "two"))
    fsspec.filesystem("memory").rm(f"/{watched.name}/private/runs", recursive=True)
    assert run.attempt(config, url).computed == ()  # stages are fetched
    monkeypatch.setenv("XDG_CACHE_HOME", str(watched / "three"))
    results.write(url)  # runs are fetched
    experiment.run(config, f"file://{watched}/there")
    for folder in ("one", "two", "three", "jaxmeter-studies", "there"):
        assert modes(watched / folder) == OURS, folder


def test_a_shared_store_follows_the_umask(config, fits, tmp_path, monkeypatch):
    with umask(0o002):
        store = Store(tmp_path / "a" / "store", shared=True)
        experiment.run(config, store)
        results.write(store)
        results.plot(store, "small", metrics=("auc",))
        results.index(store, "small")
        assert results.write_events(Store(fits, shared=True), "s", tmp_path / "a" / "events")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "cache"))
        experiment.run(config, experiment.opened(f"file://{tmp_path}/a/there", shared=True))
    assert modes(tmp_path / "a") == {("folder", 0o775), ("file", 0o664)}


def test_the_command_line_shares_a_store_when_asked(config, tmp_path, capsys):
    figures = (["plot", "--metrics", "auc"], ["index", "--no-reports"], ["events"])
    for shared, expected in ((False, OURS), (True, {("folder", 0o750), ("file", 0o640)})):
        store = tmp_path / f"store-{shared}"
        with umask(0o027):
            for command in (["run"], ["sweep"], ["table"], *(figures if shared else ())):
                more = ["--shared"] if shared else []
                experiment.main(config, (), [*command, "--store", str(store), *more])
        assert modes(store) == expected
    capsys.readouterr()


def test_a_folder_that_exists_keeps_its_mode(config, tmp_path):
    with umask(0o022):
        for name in ("store", "store/runs", "store/studies"):
            (tmp_path / name).mkdir()
            (tmp_path / name).chmod(0o2775)
        experiment.run(config, tmp_path / "store")
        results.write(tmp_path / "store")
    for name in ("store", "store/runs", "store/studies"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o2775
    inside = modes(only_run(tmp_path / "store"))
    assert {mode & 0o777 for _, mode in inside} == {0o700, 0o600}


def linear() -> jm.Target:
    """A classifier of four numbers."""

    def apply(params, state, x):
        return jm.Outputs(x @ params["w"], {})

    return jm.from_function(apply, {"w": np.eye(4, 3, dtype=np.float32)})


@pytest.fixture(scope="module")
def report() -> Report:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(80, 4)).astype(np.float32), random.integers(0, 3, 80)
    target = linear()
    records = jm.Records.of(members=(x[:40], y[:40]), nonmembers=(x[40:], y[40:]))
    return jm.audit(target, records, key=jax.random.key(0), attacks=(jm.NegativeLoss(),))


def test_a_report_is_its_owners_alone(report, watched):
    report.save(watched / "a" / "b" / "report")
    assert modes(watched / "a") == OURS
    (watched / "a" / "b" / "report").chmod(0o750)
    (watched / "a" / "b" / "report" / "figures").chmod(0o755)
    (watched / "a" / "b" / "report" / ".DS_Store").write_text("canary")
    (watched / "a" / "b" / "report" / ".DS_Store").chmod(0o600)
    (watched / "a" / "b" / "report" / "figures" / "Thumbs.db").touch(0o600)
    (watched / "a" / "b").chmod(0o700)
    report.save(watched / "a" / "b" / "report")
    folder = watched / "a" / "b" / "report"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((folder / "figures").stat().st_mode) == 0o755
    assert {mode for kind, mode in modes(folder) if kind == "file"} == {0o600}
    assert (folder / ".DS_Store").read_text() == "canary"
    assert (folder / "figures" / "Thumbs.db").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["report"]


def test_signals_and_models_are_their_owners_alone(watched):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 4)).astype(np.float32), random.integers(0, 3, 8)
    records = jm.Records.of(members=(x[:4], y[:4]), nonmembers=(x[4:], y[4:]))
    target = linear()
    jm.extract(target, records, jm.SignalSpec(loss=True), out=watched / "a" / "signals")
    with checkpoint.opened(watched / "b" / "models", {"of": "x"}) as place:
        checkpoint.save(place, [0, 1], [np.zeros((2, 3), np.float32)])
    write_npz(watched / "c.npz", records)
    jm.write_privacy_meter(watched / "d.txt", records, watched / "d.npy")
    assert modes(watched / "a") == modes(watched / "b") == OURS
    assert {stat.S_IMODE((watched / n).stat().st_mode) for n in ("c.npz", "d.txt", "d.npy")} == {
        0o600
    }


def test_logs_of_privacy_meter_are_their_owners_alone(watched):
    places = logs.claimed(watched / "logs", "x")
    with logs.logger(places) as log:
        log.handlers[1].setLevel(logging.CRITICAL)
        log.info("a record")
    curves = dict.fromkeys(History._fields, np.ones(2))
    fitted: Any = SimpleNamespace(best_epoch=1, history=History(**curves))
    logs.write_fit(places, fitted)
    result = jm.evaluate(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
    logs.write_test(places, fitted, result)
    logs.write_arrays(places, {"x": np.zeros(3)})
    logs.write_results(places, {"a": 1})
    logs.write_figures(places, {"f": Figure()})
    logs.write_comparison(watched / "logs", Figure())
    assert modes(watched / "logs") == OURS
    assert len(list(places.events.iterdir())) == 2 and "a record" in places.log.read_text()


def test_the_demo_is_its_owners_alone(watched, monkeypatch):
    def save(path: Path) -> None:
        path.write_text("a model")

    monkeypatch.setattr(demo, "classifier", lambda *data, **how: SimpleNamespace(save=save))
    demo.train(disk.make_folder(watched / "demo"), seed=0)
    assert modes(watched / "demo") == OURS
    assert {path.name for path in (watched / "demo").iterdir()} == set(demo.FILES)


def test_nothing_is_written_through_a_link_that_waits_there(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "canary")
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "link")
    disk.replace(tmp_path / "link", b"x")  # takes the link's place
    assert not (tmp_path / "canary").exists() and not (tmp_path / "link").is_symlink()


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with pytest.raises(RuntimeError), disk.folder(tmp_path / "a") as room:
        (room / "new").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]


def test_a_lock_is_shared_where_the_store_is(tmp_path):
    for common, mode in ((False, 0o600), (True, 0o660)):
        with umask(0o007), disk.locked(tmp_path / f"{common}" / "x.lock", common=common):
            found = (tmp_path / f"{common}" / "x.lock").stat().st_mode
        assert stat.S_IMODE(found) == mode
