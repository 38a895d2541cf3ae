"""Studies with reference models: what they follow from, and what follows from them."""

import json
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmeter as jm
from jaxmeter import experiment
from jaxmeter.experiment import Mlp, ShadowModels, results
from jaxmeter.experiment.results import finished
from jaxmeter.experiment.results import reports as run_reports
from jaxmeter.experiment.runs import sweep
from jaxmeter.experiment.runs.run import attempt
from jaxmeter.metrics import MetricWarning
from jaxmeter.prng import stream
from jaxmeter.reference import NetworkConfig
from jaxmeter.shadow import RecipeConfig, of_file

REFERENCES = ShadowModels(k=6, recipe=RecipeConfig(epochs=4, learning_rate=1e-2))
CALIBRATED = ("attack:LiRA", "attack:RMIA")
ALL = (
    *("records", "target", "intake", "signals", "references", "attack:negative loss"),
    *("attack:class-wise modified entropy", *CALIBRATED, "metrics"),
)


def make_config(**changes: Any) -> experiment.Config:
    config = experiment.Config(
        study="references",
        seed=0,
        data=experiment.Digits(members=100, nonmembers=100),
        target=Mlp(widths=(8,), training=experiment.Training(epochs=4)),
        attacks=(
            jm.NegativeLoss(),
            jm.ClassWise(),
            jm.Lira(),
            jm.Rmia(),
        ),
        references=REFERENCES,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module", name="done")
def done_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the run; do not change it."""
    store = tmp_path_factory.mktemp("done") / "store"
    made = attempt(make_config(), store)
    assert made.computed == ALL, made.error
    return store


@pytest.fixture(name="store")
def store_fixture(done: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(done, tmp_path / "store"))


ATTACKS = make_config().attacks
KEY = jax.random.key(0)
RECIPE = replace(REFERENCES, recipe=RecipeConfig(epochs=5))


@pytest.mark.parametrize(
    ("changes", "computed"),
    [
        ({}, ()),
        ({"references": RECIPE}, ("references", *CALIBRATED, "metrics")),
        ({"references": replace(REFERENCES, architecture=Mlp(widths=(8,)))},
         ("references",)),  # the target's own, built anew, gives the same bytes: nothing below it
        ({"references": None, "attacks": ATTACKS[:2]}, ("metrics",)),
        ({"attacks": (*ATTACKS, jm.Bavaria())}, ("attack:BaVarIA", "metrics")),
        ({"attacks": ATTACKS[:3]}, ("metrics",)),
        ({"known": 30}, (*(label for label in ALL if label.startswith("attack:")), "metrics")),
    ],
)  # fmt: skip
def test_a_changed_field_computes_what_is_below_it(changes, computed, store: Path):
    config = make_config(**changes)
    made = attempt(config, store)
    assert made.state == "done", made.error
    assert made.computed == computed
    assert attempt(config, store).computed == ()


def test_a_run_is_the_audit(done: Path):
    """Scores, spreads and budgets are those of `jaxmeter.audit` with the same seed, to the bit."""
    config, (saved,) = make_config(), done.glob("stages/target/*/target.keras")
    records = config.data.read(stream(KEY, "members"))
    shadows = jm.Shadows(architecture=of_file(saved), recipe=REFERENCES.recipe, k=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        report = jm.audit(
            jm.load_target(saved), records, key=KEY, attacks=ATTACKS, references=shadows
        )
    (run,) = finished.runs(done).finished
    with np.load(run.folder / "scores.npz", allow_pickle=False) as scores:
        for key, row in zip(scores["keys"], report.rows, strict=True):
            np.testing.assert_array_equal(scores[key], row.result.scores, err_msg=row.name)
    found = json.loads((run.folder / "results.json").read_bytes())["attacks"]
    expected = json.loads(json.dumps(report.facts()["attacks"]))
    for row in expected:
        del row["seconds"]
    assert found == expected
    assert [row["budget"]["models_trained"] for row in found] == [0, 0, 6, 6]
    assert [bool(row["over_targets"]) for row in found] == [False, False, True, True]
    assert len(found[2]["over_targets"]["auc"]["values"]) == 6


def test_a_learned_calibration_is_the_audits_and_the_same_each_time(done: Path, tmp_path: Path):
    network = NetworkConfig(widths=(8,), steps=64)
    attacks = (jm.Lira(), jm.CalibratedInference(network=network))
    config, found = make_config(attacks=attacks), []
    for name in ("one", "two"):
        store = Path(shutil.copytree(done, tmp_path / name))
        shutil.rmtree(store / "runs")
        made = attempt(config, store)
        assert made.state == "done", made.error
        assert {"signals", "references", "attack:calibrated white box"} <= set(made.computed)
        (run,) = finished.runs(store).finished
        found.append([(run.folder / n).read_bytes() for n in ("scores.npz", "results.json")])
    assert found[0] == found[1]
    (saved,) = done.glob("stages/target/*/target.keras")
    shadows = jm.Shadows(architecture=of_file(saved), recipe=REFERENCES.recipe, k=6)
    records = config.data.read(stream(KEY, "members"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few records and models there is much to say
        report = jm.audit(
            jm.load_target(saved), records, key=KEY, attacks=attacks, references=shadows
        )
    expected = json.loads(json.dumps(report.facts()["attacks"]))
    for row in expected:
        del row["seconds"]
    assert json.loads(found[0][1])["attacks"] == expected
    with np.load(run.folder / "scores.npz", allow_pickle=False) as scores:
        for key, row in zip(scores["keys"], report.rows, strict=True):
            np.testing.assert_array_equal(scores[key], row.result.scores, err_msg=row.name)
    assert expected[0]["over_targets"] and expected[1]["budget"]["parameters"]
    assert expected[1]["over_targets"] is None, "six models are too few to check the network by"


def test_signals_and_membership_are_kept_and_no_models(done: Path):
    (entry,) = done.glob("stages/references/*")
    files = {p.relative_to(entry).as_posix() for p in entry.rglob("*") if p.is_file()}
    signals = {"signals/signals.json", "signals/000.npy"}
    assert files == {"entry.json", "notes.json", "was_member.npy", *signals}
    was_member = np.load(entry / "was_member.npy")
    assert was_member.shape == (6, 200) and (was_member.sum(axis=0) == 3).all()
    assert np.load(entry / "signals/000.npy").shape == (6, 200, 10)


def test_the_spread_is_there_when_a_run_is_opened_again(done: Path):
    (run,) = finished.runs(done).finished
    stored = json.loads((run.folder / "results.json").read_bytes())
    assert "values" not in json.dumps(run.attacks), "a table needs no more than mean and deviation"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        report = run_reports.report(run)
        facts = report.facts()
    for row in facts["attacks"]:
        del row["seconds"]
    assert facts["attacks"] == stored["attacks"]
    assert report.rows[2].spread is not None and report.rows[0].spread is None


def test_the_table_has_the_spread_where_there_is_one(done: Path, store: Path):
    rows = {row["attack"]: row for row in results.tidy(done).to_pylist()}
    (run,) = finished.runs(done).finished
    over = json.loads((run.folder / "results.json").read_bytes())["attacks"][2]["over_targets"]
    values = over["auc"]["values"]
    lira = rows["LiRA"]
    assert lira["auc_over_targets_mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert lira["auc_over_targets_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert (lira["targets"], lira["models_trained"]) == (6, 6)
    assert lira["tpr_at_0.01_over_targets_mean"] == over["tpr_at_fpr"][0]["mean"]
    assert rows["negative loss"]["auc_over_targets_mean"] is None
    assert rows["negative loss"]["models_trained"] == 0
    assert (lira["references"], lira["references.k"]) == ("ShadowModels", 6)
    assert lira["seconds.references"] > 0
    told = results.table(done, metrics=["auc", "auc_over_targets_mean"])
    assert "AUC, mean over reference models" in told.markdown()
    shutil.rmtree(store / "runs")
    attempt(make_config(references=None, attacks=ATTACKS[:2]), store)
    assert not [n for n in results.tidy(store).column_names if "over_targets" in n]


def test_attacks_and_models_must_go_together():
    alone = {"references": None}
    with pytest.raises(experiment.ConfigError, match=r"LiRA, RMIA: .*experiment\.ShadowModels"):
        experiment.expand(make_config(**alone))
    with pytest.raises(experiment.ConfigError, match="none of the attacks reads reference models"):
        experiment.expand(make_config(attacks=(jm.NegativeLoss(),)))
    with pytest.raises(experiment.ConfigError, match=r"references\.k is 5; it must be even"):
        experiment.expand(make_config(), {"references.k": (6, 5)})
    with pytest.raises(experiment.ConfigError, match="recipe"):
        experiment.expand(make_config(), {"references.recipe": (3,)})
    onnx = experiment.TargetFile(path=Path("target.onnx"))
    with pytest.raises(experiment.ConfigError, match=r"made of target, target\.onnx.*\.keras or"):
        experiment.expand(make_config(target=onnx))
    known = replace(REFERENCES, architecture=Mlp())
    assert experiment.expand(make_config(target=onnx, references=known))
    lost = replace(REFERENCES, architecture=onnx)
    with pytest.raises(experiment.ConfigError, match="made of references.architecture"):
        experiment.expand(make_config(references=lost))


def test_configs_are_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    config = make_config(references=replace(REFERENCES, architecture=Mlp(widths=(4,))))
    assert experiment.from_json(experiment.to_json(config)) == config
    runs = experiment.expand(config, {"references.k": (6, 8), "references.recipe.epochs": (1, 2)})
    assert [(c.references.k, c.references.recipe.epochs) for c in runs if c.references] == [
        *((6, 1), (6, 2), (8, 1), (8, 2))
    ]
    bare = make_config(references=None, attacks=(jm.NegativeLoss(),))
    words = ["--attacks", "negative-loss", "lira", "--references", "shadow-models"]
    small = ["--references.k", "8", "--references.recipe.epochs", "1"]
    computed: list[Any] = []

    def noted(config: Any, store: Any, **options: Any) -> experiment.Outcome:
        computed.append(config)
        return experiment.Outcome(run=config.study, state="done")

    monkeypatch.setattr(sweep, "attempt", noted)
    experiment.main(bare, {}, ["sweep", "--store", str(tmp_path), *words, *small])
    (found,) = computed
    assert found.references == ShadowModels(k=8, recipe=RecipeConfig(epochs=1))
    assert [attack.name for attack in found.attacks] == ["negative loss", "LiRA"]
    capsys.readouterr()


def test_an_architecture_from_a_file_follows_from_its_content(store: Path, tmp_path: Path):
    (saved,) = store.glob("stages/target/*/target.keras")
    path = tmp_path / "guess.keras"
    shutil.copy(saved, path)
    there = replace(REFERENCES, architecture=experiment.TargetFile(path=path))
    config = make_config(references=there)
    assert path in config.files()
    assert attempt(config, store).computed == ()  # the target's own, by another way
    moved = tmp_path / "moved.keras"
    path.rename(moved)
    there = replace(there, architecture=experiment.TargetFile(path=moved))
    assert attempt(make_config(references=there), store).computed == ()


@dataclass(frozen=True, kw_only=True)
class Unbuilt:
    """An architecture that cannot be built."""


@dataclass(frozen=True, kw_only=True)
class OwnModels(ShadowModels):
    """With an architecture of a study's own."""

    architecture: Unbuilt = Unbuilt()  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class OwnConfig(experiment.Config):
    """With models of a study's own."""

    references: OwnModels = OwnModels()


def test_models_that_cannot_be_trained_are_refused(store: Path):
    own = OwnConfig(study="own", seed=0, target=Mlp(), attacks=(jm.Lira(),))
    with pytest.raises(experiment.ConfigError, match=r"Unbuilt, which has no method built\(shape"):
        experiment.expand(own)
    wild = replace(REFERENCES, recipe=RecipeConfig(epochs=4, optimizer="sgd", learning_rate=3e38))
    shutil.rmtree(store / "stages/references")
    made = attempt(make_config(references=wild), store)
    assert made.state == "failed" and made.error
    assert "0 of 6 reference models are finite" in made.error and "references" in made.error
    assert not list(store.glob("stages/references/*"))
