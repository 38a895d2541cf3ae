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
from jaxmeter import experiment
from jaxmeter.experiment.results import finished
from jaxmeter.experiment.results import reports as run_reports
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


def columns(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def assert_same_layers(found, expected) -> None:
    assert found.facts() == expected.facts()
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        np.testing.assert_array_equal(mine.result.scores, theirs.result.scores)
        assert (mine.place, mine.signal) == (theirs.place, theirs.signal)
    np.testing.assert_array_equal(found.output.scores, expected.output.scores)


def test_a_study_finds_what_an_audit_finds(flows):
    audit, study = flows.audit, flows.study
    np.testing.assert_array_equal(study.held_index, audit.held_index)
    for mine, theirs in zip(study.rows, audit.rows, strict=True):
        np.testing.assert_array_equal(mine.result.scores, theirs.result.scores, theirs.name)
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
