"""One flow: an audit, the same as a study, and ML Privacy Meter's vocabulary find the same."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.table import Table

import jaxmeter as jm
from jaxmeter import experiment, meter
from jaxmeter.auditing.assembly import noted
from jaxmeter.data.records import DataWarning
from jaxmeter.experiment.results import finished
from jaxmeter.experiment.results import reports as run_reports
from jaxmeter.meter.handlers import AttackerRecords
from jaxmeter.metrics import MetricWarning
from jaxmeter.prng import stream
from jaxmeter.reference import NetworkConfig
from jaxmeter.report.report import Report
from jaxmeter.shadow import RecipeConfig, of_file

KEY = jax.random.key(0)
RECIPE = RecipeConfig(epochs=2, learning_rate=1e-2)
K = 6


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A training-free attack that reads what makes a layer map whole."""

    name: str = "alignment"
    access = "white box"
    fits = needs_references = needs_population = False

    def reads(self, target):
        return jm.SignalSpec(loss=False, label=False, scalars=("alignment",))

    def run(self, key, fit, select, held):
        return jm.AttackOutput(
            *(sum(map(np.asarray, part.signals.scalars.values())) for part in (select, held))
        )


FREE = (jm.NegativeLoss(), jm.GradientNorm(), Aligned(), jm.Blind())
CALIBRATED = (
    jm.NegativeLoss(),
    jm.CalibratedInference(network=NetworkConfig(widths=(8,), steps=16)),
)


QUICK = jm.FitConfig(epochs=1, members=2, folds=2)


class Flows(NamedTuple):
    """One audit three times: in memory, as a study's run, and that run's folder."""

    audit: Report
    study: Report
    run: finished.Finished
    target: Path
    records: jm.Records


@pytest.fixture(scope="module", params=[FREE, CALIBRATED], ids=["alone", "with references"])
def flows(request, tmp_path_factory: pytest.TempPathFactory) -> Flows:
    store = tmp_path_factory.mktemp("flow")
    compares = request.param is CALIBRATED
    config = experiment.Config(
        study="flow",
        seed=0,
        data=experiment.Digits(members=100, nonmembers=100),
        target=experiment.Mlp(widths=(8,), training=experiment.Training(epochs=4)),
        attacks=request.param,
        references=experiment.ShadowModels(k=K, recipe=RECIPE) if compares else None,
    )
    experiment.run(config, store)
    (target,) = store.glob("stages/target/*/target.keras")
    records = config.data.read(stream(KEY, "members"))
    shadows = jm.Shadows(architecture=of_file(target), recipe=RECIPE, k=K) if compares else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few records and models there is much to say
        audit = jm.audit(
            jm.load_target(target), records, key=KEY, attacks=request.param, references=shadows
        )
    (run,) = finished.runs(store).finished
    return Flows(audit, run_reports.report(run), run, target, records)


@pytest.fixture(scope="module")
def digits() -> tuple[jm.Target, jm.Records]:
    """A tiny Keras model that has memorised 150 of scikit-learn's digits, and 300 of them."""
    records = experiment.Digits(members=150, nonmembers=150).read(KEY)
    members = records.rows(records.is_member)
    recipe = experiment.Mlp(widths=(16,), training=experiment.Training(epochs=30))
    model = recipe.trained(members.x, members.y, n_classes=10, seed=0)
    return jm.load_target(model), records


def columns(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def assert_same_layers(found, expected) -> None:
    assert found.facts() == expected.facts()
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        np.testing.assert_array_equal(mine.result.scores, theirs.result.scores)
        assert (mine.place, mine.signal) == (theirs.place, theirs.signal)
    np.testing.assert_array_equal(found.output.scores, expected.output.scores)


def assert_equal_scores(found, expected) -> None:
    """Up to the rounding of float32: other records in a batch make another program."""
    np.testing.assert_array_equal(found.is_member, expected.is_member)
    scale = np.abs(expected.scores).max()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5 * scale)
    assert found.auc == pytest.approx(expected.auc, abs=2 / found.n_members**2)


def test_a_study_finds_what_an_audit_finds(flows):
    audit, study = flows.audit, flows.study
    np.testing.assert_array_equal(study.held_index, audit.held_index)
    for mine, theirs in zip(study.rows, audit.rows, strict=True):
        np.testing.assert_array_equal(mine.result.scores, theirs.result.scores, theirs.name)
        assert mine.minus == theirs.minus
    assert_same_layers(study.layers, audit.layers)
    assert {row.signal for row in audit.layers.rows} == {"activation", "gradient", "gradient norm"}
    assert audit.layers.models == (K if len(audit.rows) == len(CALIBRATED) else 0)


def test_a_study_reports_all_that_an_audit_reports(flows):
    audit, study = flows.audit.facts(), flows.study.facts()
    assert study.keys() == audit.keys()
    assert columns(flows.study.table()) == columns(flows.audit.table())
    for row in (*audit["attacks"], *study["attacks"]):
        assert row.pop("seconds") >= 0  # the only figure that two equal audits do not share
    same = ("verdict", "parts", "attacks", "classes", "layers", "confidence")
    assert {name: study[name] for name in same} == {name: audit[name] for name in same}
    for facts in (audit, study):
        del facts["target"]["source"]["origin"]  # a file, and what it was trained by
    assert study["target"] == audit["target"]
    assert sorted(study["notes"]) == sorted(audit["notes"])
    assert study["signals"]["bytes"] == audit["signals"]["bytes"] > 0
    given = {name for name in audit["settings"] if name != "references"}  # in a study, a field each
    assert given == {"fractions", "overlap", "attacks"} <= study["settings"].keys()


def test_a_runs_folder_holds_the_layer_map(flows):
    results = json.loads((flows.run.folder / "results.json").read_bytes())
    assert results["layers"] == flows.audit.layers.facts()
    with np.load(flows.run.folder / "scores.npz", allow_pickle=False) as arrays:
        assert arrays["layer_scores"].shape == (len(flows.audit.layers.rows), 100)
    assert "layers" in flows.run.cost["stages"]


class Dealt(meter.AttackData):
    """Whose test records are an audit's held-out ones; the attacker knows the others."""

    def __init__(self, records: jm.Records, held: np.ndarray) -> None:
        members = records.rows(records.is_member)
        super().__init__(records.x, records.y, members.x, members.y, 20, 50)
        known = np.setdiff1d(np.arange(len(records.y)), held)
        self.parts = AttackerRecords(records.rows(known), records.rows(held))

    def dealt(self) -> AttackerRecords:
        return self.parts


def test_ml_privacy_meters_words_end_in_the_same_report(digits, tmp_path):
    target, records = digits
    attacks = (jm.Learned(config=QUICK), jm.NegativeLoss(), jm.GradientNorm())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        audit = jm.audit(target, records, key=KEY, attacks=attacks)
        data = Dealt(records, audit.held_index)
        attack = meter.initialize(
            *(target, target, data, data), model_name="white box", epochs=2, logs=tmp_path,
            gradients_to_exploit=[2], layers_to_exploit=["logits"],
        )  # fmt: skip
        attack.train_attack()
        report = attack.test_attack(files=False)
    assert [row.name for row in report.rows] == [row.name for row in audit.rows]
    for mine, theirs in zip(report.rows[1:], audit.rows[1:], strict=True):
        assert_equal_scores(mine.result, theirs.result)
    found, expected = (
        {(row.place, row.signal): row.result for row in one.layers.rows} for one in (report, audit)
    )
    assert found.keys() == expected.keys() and len(found) == 2
    for name, result in found.items():
        assert_equal_scores(result, expected[name])
    assert_equal_scores(report.layers.output, audit.layers.output)
    assert (report.layers.layers, report.layers.models) == (audit.layers.layers, 0)
    assert columns(report.table()) == columns(audit.table())
    found, expected = report.facts(), audit.facts()
    assert found.keys() == expected.keys()
    for mine, theirs in zip(found["attacks"], expected["attacks"], strict=True):
        assert mine.keys() == theirs.keys() and mine["budget"].keys() == theirs["budget"].keys()
        assert mine["budget"]["reads"] == theirs["budget"]["reads"]
    del found["target"]["accuracy"], expected["target"]["accuracy"]  # of the records of the test
    assert found["target"] == expected["target"]
    assert found["signals"]["seconds"] > 0 and found["device"]


def test_warnings_are_notes_and_reach_the_caller():
    def step() -> list[str]:
        with noted() as notes:
            warnings.warn("said", DataWarning, stacklevel=1)
        return notes

    with pytest.warns(DataWarning, match="^said$") as caught:
        assert step() == ["said"]
    assert [warning.filename for warning in caught] == [__file__]
    assert caught[0].lineno == step.__code__.co_firstlineno + 6
