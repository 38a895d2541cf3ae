"""The studies: what is in them, and that they run as their pages say."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

import jaxmeter as jm
from jaxmeter import cli, experiment
from jaxmeter import demo as digits
from jaxmeter.catalogue import read_by
from jaxmeter.experiment import launch, results

STUDIES = sorted((REPOSITORY / "experiments").glob("*.py"))
PAGES = ("README.md", "docs/studies.md")
COMMAND = re.compile(
    r"^\$? *(?:JAXMETER_DATA=\S+ )?(python|jaxmeter sweep) (experiments/.*)$", re.M
)
FASTEST = "--xla_backend_optimization_level=0"  # to compile
TINY = ("--data.members", "60", "--data.nonmembers", "60", "--target.training.epochs", "1")


@pytest.fixture(name="study")
def load_fixture(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a study as a module, by name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments"))
    loaded = []

    def load(name: str) -> ModuleType:
        loaded.append(name)
        return importlib.import_module(name)

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Studies and arguments of the commands in a text, without what a shell does about them."""
    found = []
    for way, line in COMMAND.findall(text):
        file, *rest = shlex.split(line, comments=True)
        named = bool(rest) and not rest[0].startswith("-")
        found.append((Path(file).stem, rest if named or way == "python" else ["sweep", *rest]))
    return found


# --- What is in the files ------------------------------------------------------------------------


def test_every_study_is_here():
    assert [path.stem for path in STUDIES] == ["demo", "digits_training_size", "location30_layers"]


@pytest.mark.parametrize(("name", "runs"), [
    ("demo", 3), ("digits_training_size", 25), ("location30_layers", 3)
])  # fmt: skip
def test_a_study_says_what_it_is_and_expands(name: str, runs: int, study: Any):
    module = study(name)
    configs = experiment.expand(module.BASE, module.AXES)
    assert module.BASE.study == name
    assert len(set(map(experiment.to_json, configs))) == runs
    assert all(experiment.from_json(experiment.to_json(config)) == config for config in configs)
    said = commands(module.__doc__)
    assert said[0] == (name, ["sweep"]) and said[1][1][0] == "table"
    assert all(of == name for of, _ in said)
    assert re.search(r"\d+ (seconds|minutes)", module.__doc__), "no cost"
    measured = set(re.findall(r"^\| ([^|]*?) \|", module.__doc__, re.MULTILINE))
    assert {attack.name for attack in module.BASE.attacks} <= measured, "no figures"


@pytest.mark.parametrize("source", [*(path.relative_to(REPOSITORY) for path in STUDIES), *PAGES],
                         ids=str)  # fmt: skip
def test_the_commands_in_the_pages_are_valid(
    source: Path | str, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    computed: list[Any] = []

    def noted(config: Any, store: Any, **options: Any) -> experiment.Outcome:
        computed.append(config)
        return experiment.Outcome(run=config.study, state="done")

    monkeypatch.setattr(launch, "attempt", noted)
    monkeypatch.chdir(tmp_path)
    found = commands((REPOSITORY / source).read_text())
    assert found, "no commands were recognised"
    for name, arguments in found:
        module = study(name)
        assert arguments, "the command does nothing"
        try:
            experiment.main(module.BASE, module.AXES, arguments)
        except SystemExit as ended:  # nothing was computed, so that there is nothing to show
            assert ended.code == 2 and "holds no runs" in capsys.readouterr().err, arguments
    assert bool(computed) == any(rest[0] == "sweep" for _, rest in found)


def test_a_wrong_command_in_a_page_would_be_noticed(study: Any, capsys):
    ((name, arguments),) = commands(
        "$ python experiments/demo.py sweep --target.epoch 3  # quick\n"
    )
    module = study(name)
    with pytest.raises(SystemExit) as ended:
        experiment.main(module.BASE, module.AXES, arguments)
    assert ended.value.code == 2 and "epoch" in capsys.readouterr().err
    assert commands("jaxmeter sweep experiments/demo.py --shard 1/2") == [
        ("demo", ["sweep", "--shard", "1/2"])
    ]


# --- The studies run -----------------------------------------------------------------------------


def test_sizes_of_the_training_set_from_a_shell(tmp_path: Path):
    path, store = REPOSITORY / "experiments/digits_training_size.py", tmp_path / "a store"
    fits = [f"--attacks.{i}.config.{field}" for i in (3, 4, 5) for field in ("epochs", "members")]
    tiny = [*TINY, *(part for flag in fits for part in (flag, "1" if "epochs" in flag else "5"))]
    axes = ["--axes.known", "15", "--axes.seed", "0"]
    command = [sys.executable, str(path), "sweep", "--store", str(store), *tiny, *axes]
    here = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": FASTEST}
    done = subprocess.run(command, capture_output=True, text=True, env=here, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = results.tidy(store, "digits_training_size")
    rows = {row["attack"]: row for row in table.to_pylist()}
    assert len(rows) == len(table) == 7
    assert {row["held_members"] for row in rows.values()} == {30}
    assert rows["white box"]["known_members"] == 15 > rows["negative loss"]["known_members"]
    cli.main(["sweep", str(path), "status", "--store", str(store)])
    cli.main(["sweep", str(path), "table", "--store", str(store), "--metrics", "auc"])
    assert (store / "studies/digits_training_size/table.md").read_text().count(
        "\n| "
    ) == 8  # a rule, and the attacks


def test_layers_of_location30(tmp_path: Path, study: Any, capsys):
    module = study("location30_layers")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 2, (150, 20)).astype(np.uint8), np.arange(150) % 3
    np.savez(tmp_path / "location30.npz", x=x, y=y)

    # Every attack finds what it reads in the layers that the target has.
    target = jm.load_target(
        replace(module.BASE.target, training=experiment.Training(epochs=1)).trained(
            x[:60].astype(np.float32), y[:60], n_classes=3, seed=0
        )
    )
    reads = {attack.name: read_by(attack, target) for attack in module.BASE.attacks}
    assert reads["output hidden_2"].outputs == ("hidden_2",)
    assert reads["gradient out"].gradients == ("out/kernel", "out/bias")
    assert reads["norm hidden_1"].norms == ("hidden_1",)
    assert reads["all norms"].norms == module.LAYERS == reads["everything"].norms
    assert reads["white box"] == jm.signals.white_box(target).resolved(target)
    alone = [spec for name, spec in reads.items() if name.endswith((*module.LAYERS, "logits"))]
    assert len(alone) == 12
    assert not any(spec.loss or len(spec.outputs) > 1 or len(spec.norms) > 1 for spec in alone)

    chosen = [a for a in module.BASE.attacks if a.name in ("negative loss", "gradient norm")]
    base = replace(module.BASE, attacks=tuple(chosen))
    store = ["--store", str(tmp_path / "store")]
    small = [*TINY, "--axes.seed", "0", "1", "--data.path", str(tmp_path / "location30.npz")]
    experiment.main(base, module.AXES, ["sweep", *store, *small])
    assert "2/2 location30_layers-" in capsys.readouterr().err
    assert set(results.tidy(tmp_path / "store")["test_accuracy"].to_pylist()) <= {
        i / 60 for i in range(61)
    }
    with pytest.raises(SystemExit) as ended:
        experiment.main(base, module.AXES, ["run", *store, "--data.path", "nowhere.npz"])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "nowhere.npz" in said and "privacytrustlab/datasets" in said and "--data.path" in said


class Heard(Exception):
    """Raised in place of an audit, when it is known what it was asked."""


def test_the_demos_study_has_the_demos_numbers(
    tmp_path: Path, study: Any, monkeypatch: pytest.MonkeyPatch
):
    # What `jaxmeter demo --seed 3` asks for, of a target trained for two epochs.
    asked: dict[str, Any] = {}

    def heard(target: jm.Target, records: jm.Records, **options: Any) -> None:
        asked.update(options, target=target, records=records)
        raise Heard

    with monkeypatch.context() as patch, pytest.raises(Heard):
        patch.setattr(jm, "audit", heard)
        patch.setattr(digits.train, "__kwdefaults__", {"epochs": 2})
        cli.demo(out=tmp_path / "demo", seed=3)
    module = study("demo")
    base = module.BASE
    assert (base.fractions, base.overlap) == (asked["fractions"], asked["overlap"])
    target = asked["target"]
    mine, its = (
        [(type(a), a.name, getattr(a, "config", None), read_by(a, target)) for a in attacks]
        for attacks in (base.attacks, asked["attacks"])
    )
    assert mine == its

    # The same of the study: its own run of some of them, and the audit.
    quick = (jm.NegativeLoss(), jm.Learned(config=jm.FitConfig(epochs=1, members=5)))
    report = jm.audit(target, asked["records"], key=asked["key"], attacks=quick)
    store = ["--store", str(tmp_path / "store"), "--target.epochs", "2"]
    seeds = [part for of in ("", "data.", "target.") for part in (f"--{of}seed", "3")]
    experiment.main(replace(base, attacks=quick), module.AXES, ["run", *store, *seeds])
    (folder,) = (tmp_path / "store" / "runs").glob("demo-*")
    with np.load(folder / "scores.npz") as file:
        np.testing.assert_array_equal(file["held_index"], report.held_index)
        for key, row in zip(file["keys"], report.rows, strict=True):
            np.testing.assert_array_equal(file[str(key)], row.result.scores, err_msg=row.name)
