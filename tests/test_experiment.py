"""Configs, hashes, and which stages follow from what."""

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import types
import typing
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest

import jaxmeter as jm
from jaxmeter import cli, experiment
from jaxmeter.experiment import serialization
from jaxmeter.experiment.runs.run import attempt
from jaxmeter.experiment.runs.sweep import shard_of
from jaxmeter.experiment.stages import signals as signals_stage
from jaxmeter.experiment.stages import target as target_stage
from jaxmeter.experiment.stages.data import Splits, known_rows
from jaxmeter.experiment.store import fingerprint
from jaxmeter.metrics import MetricWarning
from jaxmeter.prng import stream
from jaxmeter.target import Source

PACKAGE = Path(jm.__file__).parent
QUICK = jm.FitConfig(epochs=2, members=2, folds=2)


@dataclass(frozen=True, kw_only=True)
class Own:
    """A target of a study's own: hardly trained, broken if asked."""

    width: int = 8
    fault: str | None = None

    def trained(self, x, y, *, n_classes, seed) -> Any:
        """As recipes have it."""
        if self.fault == "raises":
            raise RuntimeError("the recipe is broken\nin two lines")
        layers = [keras.layers.Flatten(), keras.layers.Dense(self.width, activation="tanh")]
        layers += [keras.layers.Dense(n_classes, activation="softmax")]
        model = keras.Sequential([keras.layers.Input(x.shape[1:]), *layers])
        if self.fault in ("nan", "inf"):
            model.layers[-1].kernel.assign(np.full((self.width, n_classes), self.fault, "f"))
        if self.fault == "large":
            model.layers[-1].kernel.assign(np.full((self.width, n_classes), 3e38, "f"))
        return model


@dataclass(frozen=True, kw_only=True)
class OwnConfig(experiment.Config):
    """A study's own config."""

    target: Own | experiment.TargetFile


@dataclass(frozen=True, kw_only=True)
class Longer(OwnConfig):
    """The same with a field that no stage reads."""

    remark: str = "none"


@pytest.fixture(name="config")
def make_fixture() -> OwnConfig:
    return make_config()


def make_config() -> OwnConfig:
    return OwnConfig(
        study="own",
        seed=0,
        data=experiment.Digits(members=100, nonmembers=100),
        target=Own(),
        attacks=(jm.NegativeLoss(), jm.GradientNorm()),
    )


# --- Configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target": experiment.TargetFile(path=Path("a/b.keras"), head=("tags", 3), trust=True)},
        {"attacks": (jm.Learned(jm.SignalSpec(gradients=("out", 2), gradient_norm=("a",))),)},
        {"data": experiment.NpzRecords(path=Path("x.npz"), members=3, scale=1e300)},
        {"study": 'ä"\\\n', "fractions": (1e-7, 1.0, 0.1 + 0.2), "known": 0},
        {"fractions": (float("inf"), -0.0, 5e-324)},
    ],
)
def test_a_config_written_and_read_is_the_same(changes, config):
    changed = replace(config, **changes)
    text = experiment.to_json(changed)
    again = experiment.from_json(text)
    assert again == changed and type(again) is OwnConfig
    assert experiment.to_json(again) == text
    assert repr(again) == repr(changed)  # -0.0 and 0.0, 1 and 1.0, are equal but not the same


def test_different_configs_have_different_text():
    digits = experiment.Digits
    values = [1, 1.0, True, "1", None, "None", (), (1,), ((1,),), Path("1"), digits(members=1)]
    texts = {json.dumps(serialization.plain(value)) for value in values}
    assert len(texts) == len(values)


def test_what_has_no_exact_text_is_refused(config):
    for value in ([1], {"a": 1}, np.float32(1), np.ones(2), float("nan"), {1}):
        with pytest.raises(experiment.ConfigError):
            experiment.to_json(replace(config, known=value))


def test_a_config_of_another_version_is_refused(config):
    text = experiment.to_json(config)
    older = json.loads(text)
    del older["overlap"]
    older["target"]["depth"] = 3
    with pytest.raises(experiment.ConfigError, match="Own of another version.*depth is not known"):
        experiment.from_json(json.dumps(older))
    older["target"].pop("depth")
    with pytest.raises(experiment.ConfigError, match="OwnConfig of another.*overlap is missing"):
        experiment.from_json(json.dumps(older))
    for gone in (
        "jaxmeter.gone:Away",
        "jaxmeter:Away",
        "jaxmeter.attacks.suite:Learned",
        "jaxmeter",
    ):
        with pytest.raises(experiment.ConfigError, match=f"'{gone}', which is not known"):
            experiment.from_json(json.dumps({"is": gone}))
    with pytest.raises(experiment.ConfigError, match="which is not known"):
        experiment.from_json('{"is": "os:system", "command": "true"}')
    with pytest.raises(experiment.ConfigError, match="not a config"):
        experiment.from_json("{")


def test_configs_name_types_as_a_user_does():
    config = experiment.Config(
        study="s",
        seed=0,
        target=experiment.Mlp(),
        attacks=(jm.Learned(spec=jm.SignalSpec()), jm.CalibratedInference()),
        references=experiment.ShadowModels(
            recipe=jm.shadow.RecipeConfig(augment=jm.shadow.MirrorAndShift()),
            architecture=Own(),
        ),
    )
    named = set(re.findall(r'"is":"([^"]*)"', experiment.to_json(config)))
    assert named == {
        *("jaxmeter:CalibratedInference", "jaxmeter:FitConfig", "jaxmeter:Learned"),
        *("jaxmeter:SignalSpec", "jaxmeter.experiment:Config", "jaxmeter.experiment:Digits"),
        *("jaxmeter.experiment:Mlp", "jaxmeter.experiment:ShadowModels"),
        *("jaxmeter.experiment:Training", "jaxmeter.experiment:Variance"),
        *("jaxmeter.reference:NetworkConfig", "jaxmeter.shadow:MirrorAndShift"),
        *("jaxmeter.shadow:RecipeConfig", f"{__name__}:Own"),
    }
    assert experiment.from_json(experiment.to_json(config)) == config


def test_every_type_that_a_config_declares_has_a_public_name():
    waiting: list[Any] = [experiment.Config]
    seen = set()
    while waiting:
        hint = waiting.pop()
        waiting += typing.get_args(hint)
        if dataclasses.is_dataclass(hint) and hint not in seen:
            seen.add(hint)
            assert serialization._kind(serialization.tag(hint)) is hint
            waiting += serialization.declared(hint).values()
    assert {jm.Lira, experiment.Cnn, experiment.Normal, jm.shadow.RecipeConfig} <= seen


def test_a_type_of_jaxmeter_that_is_not_public_is_refused(config):
    hidden = Source(route="keras-jax", origin="a.keras", versions=())
    with pytest.raises(experiment.ConfigError, match="Source, which is no public type of jaxmeter"):
        experiment.to_json(replace(config, known=hidden))


def test_a_default_that_changes_renames_the_run(config, monkeypatch):
    name = experiment.name_of(config)
    monkeypatch.setattr(OwnConfig.__init__, "__kwdefaults__", {
        **OwnConfig.__init__.__kwdefaults__, "device_mib": 512
    })  # fmt: skip
    assert make_config() == replace(config, device_mib=512)
    assert experiment.name_of(make_config()) != name == experiment.name_of(config)


def test_a_sweep_is_the_product_of_its_axes(config):
    axes = {"seed": range(2), "target.width": (3, 4), "attacks.1": (jm.Blind(), jm.Entropy())}
    found = experiment.expand(config, axes)
    assert [(c.seed, c.target.width, c.attacks[1].name) for c in found[:3]] == [
        (0, 3, "blind baseline"),
        (0, 3, "entropy"),
        (0, 4, "blind baseline"),
    ]
    assert len(found) == 8 and experiment.expand(config) == (config,)
    listed = ({"seed": 3}, {"known": 20, "target.width": 2}, {"seed": 3})
    assert [(c.seed, c.known) for c in experiment.expand(config, listed)] == [(3, None), (0, 20)]
    assert experiment.expand(config, {"fractions": ((1, 1, 1),)})[0].fractions == (1.0, 1.0, 1.0)
    names = [experiment.name_of(c) for c in found]
    assert len(set(names)) == 8 and all(name.startswith("own-") for name in names)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"target.widht": (1,)}, r"no field 'target.widht'.*nearest: target.width"),
        ({"width": (1,)}, r"no field 'width'.*target.width"),
        ({"attacks.2.config.epochs": (1,)}, "no field 'attacks.2.config.epochs'"),
        ({"seed": (0.5,)}, "seed is 0.5, a float; it takes int"),
        ({"seed": (True,)}, "seed is True, a bool; it takes int"),
        ({"known": ("20",)}, "known is '20', a str; it takes int or None"),
        ({"overlap": ("ignore",)}, "it takes 'error' or 'drop'"),
        ({"fractions": ((0.5, 0.5),)}, r"a tuple of \(float, float, float\)"),
        ({"target": (3,)}, "target is 3, an int; it takes Own or TargetFile"),
        ({"target.width": (1.5,)}, "target.width is 1.5, a float; it takes int"),
        ({"seed": (-1,)}, "seed is -1"),
        ({"study": ("a/b",)}, "study is 'a/b'"),
        ({"attacks": ((jm.Blind(), jm.Blind()),)}, "each its own name"),
        ({"seed": 3}, "axis seed is 3; it takes a tuple"),
        ({"seed": ()}, "axis seed is"),
    ],
)
def test_wrong_axes_are_refused(axes, message, config):
    with pytest.raises(experiment.ConfigError, match=message):
        experiment.expand(config, axes)


def test_shards_are_all_runs_once():
    for count in range(12):
        for n in range(1, 6):
            parts = [shard_of(range(count), (i, n)) for i in range(1, n + 1)]
            assert [run for part in parts for run in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- Hashes --------------------------------------------------------------------------------------


def test_code_counts_by_what_it_does(tmp_path, monkeypatch):
    def version(study: str, beside: str = "A = 1\n") -> str:
        (tmp_path / "a_study.py").write_text(study)
        (tmp_path / "beside_it.py").write_text(beside)
        module = types.ModuleType("a_study")
        module.__file__ = str(tmp_path / "a_study.py")
        monkeypatch.setitem(sys.modules, "a_study", module)
        fingerprint.code_version.cache_clear()
        return fingerprint.code_version("a_study")

    code = "from beside_it import A\ndef f(x):\n    return x + A\n"
    first = version(code)
    same = (
        '"""What."""\nfrom beside_it import A\n\ndef f(x):  # how\n    """Why."""\n    return x+A\n'
    )
    assert version(same) == first
    assert (
        version(f"{code}BASE = f(3)\nAXES = {{}}\nif __name__ == '__main__':\n    f(1)\n") == first
    )
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import beside_it\n"
    assert version(typed, "A = 2\n") == version(typed)
    assert version(code, '"""Doc."""\nA = 1  # one\n') == first
    others = {version(code.replace("+", "-")), version(code, "A = 2\n"), first}
    assert len(others) == 3
    fingerprint.code_version.cache_clear()


def test_stages_follow_from_what_they_import():
    def counted(module: str) -> set[str]:
        behind, _ = fingerprint._modules_behind([module])
        return {Path(path).relative_to(PACKAGE).as_posix() for path in behind}

    assert counted("jaxmeter.experiment.stages.data") == {
        *("data/records.py", "data/splits.py", "prng.py"),
        *("experiment/stages/data.py", "experiment/stages/notes.py"),
    }
    attacking = counted("jaxmeter.experiment.stages.attack")
    assert {"inference/fitting.py", "inference/features.py", "signals/spec.py"} <= attacking
    assert (
        not {"report/page.py", "report/report.py", "intake/keras/target.py", "signals/storage.py"}
        & attacking
    )
    ranking = counted("jaxmeter.experiment.stages.layers")
    assert "auditing/layers.py" in ranking
    trains_or_shows = {"auditing/references.py", "shadow/training.py", "report/layer_map.py"}
    assert not trains_or_shows & ranking
    training = counted("jaxmeter.experiment.stages.references")
    assert not {"auditing/layers.py", "attacks/suite.py"} & training
    assert "intake/keras/target.py" in counted("jaxmeter.experiment.stages.examination")
    pool = counted("jaxmeter.experiment.stages.pool")
    assert {"shadow/training.py", "experiment/stages/pool_draws.py"} <= pool
    asks = {"auditing/references.py", "attacks/interface.py", "signals/extraction.py"}
    assert not asks & pool, "a pool is trained again for what it is asked"


# A package in small. `stage` imports from a file and from a package, in a function and by name;
# `ring` and `other` import each other; `twin` has the text of `leaf` and imports something else.
SMALL = {
    "__init__.py": "",
    "stage.py": """
import numpy as np
from jaxmeter.leaf import one
from jaxmeter.room import two as second
from jaxmeter.ring import turn
def run(x):
    from jaxmeter import late
    return one(second(turn(np.exp(x)))) + late.f(importlib.import_module("jaxmeter.named").f)
""",
    "room/__init__.py": "from jaxmeter.room.inner import two, three\n",
    "room/inner.py": "def two(x):\n    return x\ndef three(x):\n    return 3 * x\n",
    "leaf.py": "from jaxmeter.deep import c\ndef one(x):\n    return x + c\n",
    "twin.py": "from jaxmeter.bottom import c\ndef one(x):\n    return x + c\n",
    "ring.py": "from jaxmeter.other import c\ndef turn(x):\n    return c * x\n",
    "other.py": "import jaxmeter.ring\nc = 4\n",
    "deep.py": "c = 5\n",
    "bottom.py": "c = 6\n",
    "late.py": "def f(x):\n    return x\n",
    "named.py": "f = 7\n",
    "unused.py": "f = 8\n",
}


@pytest.fixture(name="small_key")
def small_key_fixture(tmp_path, monkeypatch) -> Any:
    """The key of the stage of `SMALL` with changes: files by name, or (old, new) of a file's."""
    monkeypatch.setattr(fingerprint, "_folder", lambda: tmp_path / "jaxmeter")

    def key(changes=(), stage: str = "jaxmeter.stage") -> str:
        shutil.rmtree(tmp_path / "jaxmeter", ignore_errors=True)
        files = dict(SMALL)
        for name, change in dict(changes).items():
            if isinstance(change, tuple):
                assert change[0] in files[name]
                change = files[name].replace(*change)
            files[name] = change
        for name, text in files.items():
            path = tmp_path / "jaxmeter" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is not None:
                path.write_text(text)
        fingerprint._file_of_ours.cache_clear()
        return fingerprint.code_version.__wrapped__(stage)

    yield key
    fingerprint._file_of_ours.cache_clear()


LEAF = "from jaxmeter.leaf import one"
ROOM = "from jaxmeter.room import two as second"


@pytest.mark.parametrize(
    "changes",
    {
        "a file moved": {
            "leaf.py": None,
            "a/b/c/sheet.py": SMALL["leaf.py"],
            "stage.py": (LEAF, "from jaxmeter.a.b.c.sheet import one"),
        },
        "one in a circle moved": {
            "ring.py": None,
            "a/ring.py": SMALL["ring.py"],
            "stage.py": ("jaxmeter.ring", "jaxmeter.a.ring"),
            "other.py": ("jaxmeter.ring", "jaxmeter.a.ring"),
        },
        "one imported by name moved": {
            "named.py": None,
            "a/named.py": SMALL["named.py"],
            "stage.py": ("jaxmeter.named", "jaxmeter.a.named"),
        },
        "one imported as a module moved": {
            "late.py": None,
            "a/__init__.py": "",
            "a/late.py": SMALL["late.py"],
            "stage.py": ("from jaxmeter import late", "from jaxmeter.a import late"),
        },
        "two change places with their importers": {
            "leaf.py": SMALL["twin.py"],
            "twin.py": SMALL["leaf.py"],
            "stage.py": (LEAF, "from jaxmeter.twin import one"),
        },
        "an import not through the package": {
            "stage.py": (ROOM, "from jaxmeter.room.inner import two as second")
        },
        "a package passes on more": {
            "room/__init__.py": f"{SMALL['room/__init__.py']}from jaxmeter.unused import f\n"
        },
        "imports in another order": {"stage.py": (f"{LEAF}\n{ROOM}", f"{ROOM}\n\n{LEAF}")},
        "what only type checkers import": {
            "stage.py": (LEAF, f"{LEAF}\nif TYPE_CHECKING:\n    from jaxmeter.unused import f")
        },
        "comments, docstrings, formatting": {
            "stage.py": (LEAF, "# Why.\nfrom jaxmeter.leaf import (\n    one,\n)"),
            "leaf.py": ("return x + c", '"""1."""\n    return (x+c)'),
            "deep.py": '"""What."""\n\nc = 5  # why\n',
        },
        "what nobody imports": {"unused.py": "f = 9\n"},
    }.items(),
    ids=lambda change: change[0],
)  # fmt: skip
def test_where_files_lie_changes_no_key(changes, small_key):
    assert small_key(changes[1]) == small_key()


@pytest.mark.parametrize(
    "changes",
    {
        "two files change places": {"leaf.py": SMALL["late.py"], "late.py": SMALL["leaf.py"]},
        "two of one text change places": {"leaf.py": SMALL["twin.py"], "twin.py": SMALL["leaf.py"]},
        "an import of another module": {"stage.py": (LEAF, "from jaxmeter.ring import one")},
        "an import of another module of one text": {
            "stage.py": (LEAF, "from jaxmeter.twin import one")
        },
        "an import of another name": {
            "stage.py": (ROOM, "from jaxmeter.room import three as second")
        },
        "two local names change places": {
            "stage.py": (
                f"{LEAF}\n{ROOM}",
                "from jaxmeter.leaf import one as second\nfrom jaxmeter.room import two as one",
            )
        },
        "a package passes on something else": {
            "room/__init__.py": "from jaxmeter.room.inner import three as two\n"
        },
        "an import of another module in a function": {
            "stage.py": ("from jaxmeter import late", "from jaxmeter import unused as late")
        },
        "another module imported by name": {"stage.py": ("jaxmeter.named", "jaxmeter.unused")},
        "another package": {"stage.py": ("import numpy as np", "import jax.numpy as np")},
        "a function behind a package": {"room/inner.py": ("return x", "return -x")},
        "a number far below": {"deep.py": "c = 5.5\n"},
        "a number in a circle": {"other.py": ("c = 4", "c = 4.5")},
        "what is not for type checkers": {
            "stage.py": (LEAF, f"{LEAF}\nif not TYPE_CHECKING:\n    from jaxmeter.unused import f")
        },
    }.items(),
    ids=lambda change: change[0],
)  # fmt: skip
def test_what_code_does_changes_the_key(changes, small_key):
    assert small_key(changes[1]) != small_key()


KEYS = """
import json
from jaxmeter import experiment
from jaxmeter.experiment.stages import graph
base = experiment.Config(study="s", seed=0, target=experiment.Mlp())
made_of = (graph.data_stage, graph.target_stage, graph.examination, graph.signals_stage,
           graph.references_stage, graph.attack_stage, graph.layers_stage, graph.metrics_stage)
keys = [graph.code_version(module.__name__) for module in made_of]
keys += [graph.code(base), experiment.name_of(base)]
print(json.dumps(keys))
"""
MOVES = {
    "jaxmeter.data.records": "jaxmeter.rooms.below.records",
    "jaxmeter.disk": "jaxmeter.rooms.disk",
    "jaxmeter.scores": "jaxmeter.rooms.scores",
    "jaxmeter.attacks.calibrated": "jaxmeter.rooms.calibrated",
    "jaxmeter.signals.example": "jaxmeter.rooms.example",
    "jaxmeter.intake.keras.retraining": "jaxmeter.rooms.retraining",
    "jaxmeter.shadow.recipe": "jaxmeter.recipe",
    "jaxmeter.experiment.stages.data": "jaxmeter.rooms.data",
    "jaxmeter.experiment.store.fingerprint": "jaxmeter.rooms.below.fingerprint",
}


def test_a_package_with_files_moved_gives_the_same_keys(tmp_path, capfd):
    copy = tmp_path / "jaxmeter"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*.py"):
        path.write_text(adapted(path.read_text()))
    for old, new in MOVES.items():
        place = tmp_path.joinpath(*new.split(".")).with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(*old.split(".")).with_suffix(".py").rename(place)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-P", "-c", f"{KEYS}\nprint(experiment.__file__)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys, place = done.stdout.splitlines()
    assert Path(place).is_relative_to(copy)
    exec(KEYS, {})
    assert json.loads(keys) == json.loads(capfd.readouterr().out)


def adapted(source: str) -> str:
    """A module's source after `MOVES`."""
    lines = source.splitlines()
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    for node in sorted(found, key=lambda node: -node.lineno):
        places: dict[str, list[str]] = {}
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            moved = MOVES[whole].rpartition(".")[0] if whole in MOVES else None
            place = moved or MOVES.get(node.module, node.module)
            places.setdefault(place, []).append(ast.unparse(alias))
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [
            f"{indent}from {place} import {', '.join(names)}" for place, names in places.items()
        ]
    text = "\n".join(lines) + "\n"
    for old, new in MOVES.items():
        text = text.replace(f'import_module("{old}")', f'import_module("{new}")')
    return text


def test_a_files_hash_is_of_its_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = fingerprint.content_of(path)
    os.utime(path, (1, 1))
    assert fingerprint.content_of(path) == first == fingerprint.content_of(tmp_path / "." / "a")
    found = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # size and time as they were
    assert fingerprint.content_of(path) != first
    folder = fingerprint.content_of(tmp_path)
    path.rename(tmp_path / "b")
    assert fingerprint.content_of(tmp_path) != folder
    with pytest.raises(FileNotFoundError, match="names as its input"):
        fingerprint.content_of(path)


def test_a_trained_target_has_the_same_bytes_every_time(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 5)).astype("f")
    records = jm.Records.of(members=(x[:30], np.arange(30) % 3), nonmembers=(x[30:], [0] * 30))
    recipe = experiment.Mlp(widths=(4,), training=experiment.Training(epochs=1))
    saved = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        members = records.rows(records.is_member)
        for own in (recipe, Own(width=3)):
            target_stage.train(folder, recipe=own, members=members, n_classes=3, seed=1)
            saved.append((folder / target_stage.FILE).read_bytes())
        keras.layers.Dense(1)  # moves the names that Keras gives
        keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(2)])
    assert saved[:2] == saved[2:]
    assert jm.load_target(tmp_path / "a" / target_stage.FILE).spec.n_classes == 3


# --- Stages --------------------------------------------------------------------------------------

ATTACKS = ("attack:negative loss", "attack:gradient norm")
BELOW_SIGNALS = (*ATTACKS, "layers", "metrics")
ALL = ("records", "target", "intake", "signals", *BELOW_SIGNALS)


@pytest.mark.parametrize(
    ("changes", "computed"),
    [
        ({}, ()),
        ({"study": "other"}, ()),
        ({"known": 20}, (*ATTACKS, "metrics")),
        ({"device_mib": 512}, ("signals",)),  # the same bytes: nothing below it
        ({"attacks": (jm.NegativeLoss(), jm.GradientNorm(), jm.ClassWise())},
         ("attack:class-wise modified entropy", "metrics")),
        ({"attacks": (jm.GradientNorm(), jm.NegativeLoss())}, ("metrics",)),
        ({"attacks": (jm.NegativeLoss(),)}, ("signals", "metrics")),
        ({"target": Own(width=9)}, ("target", "intake", "signals", *BELOW_SIGNALS)),
        ({"fractions": (0.3, 0.2, 0.5)}, ("records", "signals", *BELOW_SIGNALS)),
        ({"data": experiment.Digits(members=100, nonmembers=90)},
         ("records", "signals", *BELOW_SIGNALS)),
        ({"data": experiment.Digits(members=90, nonmembers=100)},
         tuple(stage for stage in ALL if stage != "intake")),  # it is not trained on them
        ({"seed": 1}, ALL),
    ],
)  # fmt: skip
def test_a_changed_field_computes_what_is_below_it(changes, computed, config, finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    made = attempt(replace(config, **changes), store)
    assert made.state == "done", made.error
    assert made.computed == computed
    assert attempt(replace(config, **changes), store).computed == ()


def test_a_new_field_renames_the_run_and_computes_nothing(config, finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    made = attempt(Longer(**fields), store)
    assert (made.state, made.computed, set(made.cached)) == ("done", (), set(ALL))
    assert made.run != experiment.name_of(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A store with the run of `config`."""
    store = tmp_path_factory.mktemp("finished") / "store"
    assert attempt(make_config(), store).computed == ALL
    return store


def test_a_touched_file_computes_nothing_and_a_changed_one_all_below(config, tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("f")
    paths = [tmp_path / "members.npz", tmp_path / "others.npz"]
    for path, part in zip(paths, (x[:100], x[100:]), strict=True):
        np.savez(path, x=part, y=np.arange(100) % 3)
    pair = replace(config, data=experiment.NpzPair(members=paths[0], nonmembers=paths[1]))
    store = tmp_path / "store"
    first = attempt(pair, store)
    assert first.computed == ALL
    for path in paths:
        os.utime(path, (1, 1))
    again = attempt(pair, store)
    assert (again.run, again.state, again.computed) == (first.run, "done", ())
    x[150] += 1
    np.savez(paths[1], x=x[100:], y=np.arange(100) % 3)
    second = attempt(pair, store)
    assert second.run != first.run
    assert second.computed == ("records", "signals", *BELOW_SIGNALS)  # the members are the same
    x[50] += 1
    np.savez(paths[0], x=x[:100], y=np.arange(100) % 3)
    assert attempt(pair, store).computed == tuple(s for s in ALL if s != "intake")
    paths[0].unlink()
    missing = attempt(pair, store)
    assert missing.state == "failed" and "there is no file" in str(missing.error)


def test_a_run_is_the_audit(config, tmp_path):
    attacks = (jm.NegativeLoss(), jm.ClassWise(), jm.Learned(config=QUICK), jm.Blind())
    folder = experiment.run(replace(config, seed=3, attacks=attacks), tmp_path)
    saved = next(tmp_path.glob("stages/target/*/target.keras"))
    records = config.data.read(stream(jax.random.key(3), "members"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        report = jm.audit(jm.load_target(saved), records, key=jax.random.key(3), attacks=attacks)
    with np.load(folder / "scores.npz", allow_pickle=False) as scores:
        for key, row in zip(scores["keys"], report.rows, strict=True):
            np.testing.assert_array_equal(scores[key], row.result.scores)
        np.testing.assert_array_equal(scores["held_index"], report.held_index)
    results = json.loads((folder / "results.json").read_bytes())
    expected = report.facts()
    for row in expected["attacks"]:
        del row["seconds"]
    assert results["attacks"] == json.loads(json.dumps(expected["attacks"]))
    assert results["parts"] == expected["parts"]
    assert results["accuracy"] == list(report.accuracy)
    assert set(report.notes) == set(results["notes"])


def test_a_larger_budget_knows_what_a_smaller_one_knew():
    is_member = np.arange(200) % 2 == 0
    parts = np.arange(80), np.arange(80, 100), np.arange(100, 200)
    facts = {**dict.fromkeys(("members", "everything", "content"), ""), "shape": (1,), "notes": []}
    dealt = Splits(parts=parts, y=np.zeros(200, int), is_member=is_member, **facts)
    before: list[set[int]] = [set(), set()]
    for known in (10, 20, 33, 50):
        rows = known_rows(dealt, known=known, seed=0)
        truth = np.concatenate([is_member[p[r]] for p, r in zip(parts[:2], rows, strict=False)])
        assert truth.sum() == (~truth).sum() == known
        assert rows[2].size == 100
        now = [set(r.tolist()) for r in rows[:2]]
        assert all(a <= b for a, b in zip(before, now, strict=True))
        before = now
    assert [r.size for r in known_rows(dealt, known=None, seed=0)] == [80, 20, 100]
    for known in (51, 3):
        with pytest.raises(ValueError, match=f"known is {known}"):
            known_rows(dealt, known=known, seed=0)


def test_signals_that_are_not_finite_are_refused(tmp_path):
    def steep(params, state, x):
        return x @ params["w"] * 1e38

    target = jm.from_function(steep, {"w": np.eye(2, dtype="f")})
    x = np.ones((6000, 2), "f")
    x[5000] = 10
    records = jm.Records(x, np.zeros(6000, int), np.arange(6000) % 2 == 0)
    spec = jm.SignalSpec().resolved(target.for_inputs((2,)))
    with pytest.raises(ValueError, match="not finite .first: record 5000"):
        signals_stage.compute(
            tmp_path, target=target, records=records, spec=spec, device_budget=2**30
        )


# --- Failures and the command line ---------------------------------------------------------------


def test_failed_runs_are_listed_and_the_others_finish(config, tmp_path, capsys):
    faults = ("raises", None, "nan", "large")
    store = ["--store", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        experiment.main(config, {"target.fault": faults}, ["sweep", *store])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "3 of 4 runs failed" in said
    seen = {o.run: o for o in experiment.status("own", tmp_path)}
    outcomes = [
        seen[experiment.name_of(c)] for c in experiment.expand(config, {"target.fault": faults})
    ]
    assert [o.state for o in outcomes] == ["failed", "done", "failed", "failed"]
    messages = ("RuntimeError: the recipe is broken in two lines (in stage target)", None,
                "training diverged", "by nan on a probe batch")  # fmt: skip
    for outcome, message in zip(outcomes, messages, strict=True):
        assert outcome.error is None if message is None else message in str(outcome.error)
    status = json.loads((tmp_path / "runs" / outcomes[0].run / "status.json").read_bytes())
    assert "raise RuntimeError" in status["traceback"]
    with pytest.raises(SystemExit) as ended:
        experiment.main(config, {"target.fault": faults}, ["status", *store])
    assert ended.value.code == 1 and "in two lines" in capsys.readouterr().out
    experiment.main(
        config, {"target.fault": faults}, ["sweep", *store, "--axes.target.fault", "None"]
    )


def test_a_stage_that_failed_is_tried_once_a_sweep(config, tmp_path):
    broken = replace(config, target=Own(fault="raises"))
    axes = {"known": (None, 20), "target.width": (8, 9)}
    for sweeps in (1, 2):
        outcomes = experiment.sweep(broken, axes, tmp_path).outcomes
        messages = {outcome.error for outcome in outcomes}
        assert messages == {"RuntimeError: the recipe is broken in two lines (in stage target)"}
        assert [outcome.state for outcome in outcomes] == ["failed"] * 4
        lines = map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines())
        begun = [line for line in lines if line["stage"] == "target"]
        assert len(begun) == 2 * sweeps, "once a target, and again by the next sweep"
    kept = json.loads((tmp_path / "runs" / outcomes[2].run / "status.json").read_bytes())
    assert kept["error"] in messages and "FailedBefore" in kept["traceback"]
    assert experiment.attempt(broken, tmp_path).state == "failed"
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 7, "a run tries again"


def test_fields_and_axes_change_on_the_command_line(config, tmp_path, capsys):
    axes = {"seed": (0, 1, 2), "known": (None, 20)}
    store = ["--store", str(tmp_path)]
    experiment.main(config, axes, ["run", *store, "--known", "30", "--target.width", "5"])
    folder = Path(capsys.readouterr().out.strip())
    fields = json.loads((folder / "config.json").read_bytes())["fields"]
    assert (fields["known"], fields["target.width"], fields["seed"]) == (30, 5, 0)
    experiment.main(config, axes, ["sweep", *store, "--axes.seed", "0", "--shard", "2/2"])
    assert "1/1 own-" in capsys.readouterr().err
    experiment.main(config, axes, ["verify", *store])
    experiment.main(config, axes, ["gc", *store])
    assert "/stages/metrics/" in capsys.readouterr().out
    for wrong, message in (
        (["run", "--seed", "x"], "invalid literal"),
        (["run", "--target.widht", "3"], "--target.width"),
        (["sweep", "--axes.known", "a"], "known"),
        (["sweep", "--shard", "3/2"], "--shard 3/2: it takes 1/4"),
    ):
        with pytest.raises(SystemExit) as ended:
            experiment.main(config, axes, wrong)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        experiment.main(config, {"sed": (1,)}, ["status"])
    assert ended.value.code == 2 and "nearest: seed" in capsys.readouterr().err


STUDY = """
import keras
from jaxmeter import NegativeLoss, experiment
from its_neighbour import WIDTHS

BASE = experiment.Config(
    study="file",
    seed=0,
    data=experiment.Digits(members=100, nonmembers=100),
    target=experiment.TargetFile(path={path!r}),
    attacks=(NegativeLoss(),),
)
AXES = {{"seed": WIDTHS}}
if __name__ == "__main__":
    experiment.main(BASE, AXES)
"""


def test_jaxmeter_sweep_runs_a_studys_file(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    keras.Sequential([keras.layers.Input((8, 8, 1)), *layers]).save(tmp_path / "t.keras")
    (tmp_path / "its_neighbour.py").write_text("WIDTHS = (0, 1)\n")
    study = tmp_path / "a study.py"
    study.write_text(STUDY.format(path=str(tmp_path / "t.keras")))
    before = sys.argv, list(sys.path)
    cli.main(["sweep", str(study), "--store", str(tmp_path / "store")])
    assert "2/2 file-" in capsys.readouterr().err
    cli.main(["sweep", str(study), "status", "--store", str(tmp_path / "store")])
    assert "done" in capsys.readouterr().out
    assert (sys.argv, sys.path) == before
    sys.modules.pop("its_neighbour")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(tmp_path / "none.py")])
    assert ended.value.code == 2 and "there is no study" in capsys.readouterr().err
