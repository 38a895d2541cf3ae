"""Pools: each model of several in turn is the target, attacked with others of them."""

import json
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxmeter as jm
from jaxmeter import experiment, reference, shadow
from jaxmeter.experiment import results
from jaxmeter.experiment.results import finished
from jaxmeter.experiment.results import reports as run_reports
from jaxmeter.experiment.runs.run import attempt
from jaxmeter.experiment.stages import graph
from jaxmeter.experiment.store.store import Store
from jaxmeter.logits import log_odds, log_probability
from jaxmeter.prng import stream

N = 120
RECIPE = shadow.RecipeConfig(epochs=3, learning_rate=1e-2)
NETWORK = reference.NetworkConfig(widths=(8,), steps=16)
CALIBRATED = jm.CalibratedInference(network=NETWORK)
ATTACKS = (jm.NegativeLoss(), jm.Lira(), jm.Rmia(), CALIBRATED)
LABELS = tuple(f"attack:{attack.name}" for attack in ATTACKS)


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A Flax network."""

    width: int = 8

    def built(self, shape: tuple[int, ...], *, n_classes: int, seed: int) -> shadow.Architecture:
        layers = [lambda x: x.reshape(len(x), -1), nn.Dense(self.width), nn.relu]
        return shadow.of_flax(nn.Sequential([*layers, nn.Dense(n_classes)]), input_shape=shape)


POOL = experiment.Pool(models=8, k=4, recipe=RECIPE, architecture=Flat())


def make_config(**changes: Any) -> experiment.Config:
    return replace(
        experiment.Config(
            study="pool",
            seed=3,
            data=experiment.Digits(members=N // 2, nonmembers=N // 2),
            target=POOL,
            attacks=ATTACKS,
            fractions=(0.25, 0.0, 0.75),
        ),
        **changes,
    )


def at(index: int, **changes: Any) -> experiment.Config:
    return make_config(target=replace(POOL, index=index, **changes))


STRANGER = experiment.Stranger(recipe=replace(RECIPE, epochs=2), members=40)
RUNS = {"first": at(0), "last": at(7), "stranger": at(1, stranger=STRANGER)}


@pytest.fixture(scope="module", name="done")
def done_fixture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store with the runs, do not change it; and what was computed of each."""
    store, shown = tmp_path_factory.mktemp("done") / "store", set()
    made = {
        name: attempt(config, store, progress=lambda *now: shown.add(now))
        for name, config in RUNS.items()
    }
    # Epochs of the pool and of the stranger with its other half, and models that were asked.
    assert {("pool", 24, 24), ("target", 4, 4), ("pool_signals", 8, 8)} <= shown
    assert all(one.state == "done" for one in made.values()), made
    return store, made


class Direct:
    """The pool by direct calls of the library, without the harness."""

    def __init__(self) -> None:
        key = jax.random.key(3)
        self.key, (draw, train) = key, jax.random.split(key)
        self.records = make_config().data.read(stream(key, "members"))
        x, y, _ = self.records
        assert len(np.unique(x, axis=0)) == N
        self.was_member = shadow.balanced_membership(draw, 8, N)
        self.architecture = Flat().built(x.shape[1:], n_classes=10, seed=3)
        models = shadow.train(train, self.architecture, x, y, self.was_member, RECIPE.recipe())
        self.signals = self.look(models)
        order = np.random.default_rng(3).permutation(N)
        self.fit, self.held = np.sort(order[: N // 4]), np.sort(order[N // 4 :])

    def look(self, models: jm.Target) -> jm.Signals:
        kinds = ("alignment", "class distance")
        spec = jm.SignalSpec(gradient_norm=True, scalars=kinds)
        return shadow.extract(models, self.records, spec)

    def scores(self, target: jm.Signals, is_member: Any, models: list[int]) -> dict[str, Any]:
        """Of the held-out records, by attack."""
        y, fit, held = self.records.y, self.fit, self.held
        of_models = jax.tree.map(lambda leaf: leaf[models], self.signals)
        seen = self.was_member[models]
        odds, theirs = log_odds(target.logits, y), log_odds(of_models.logits, y)
        logs, others = log_probability(target.logits, y), log_probability(of_models.logits, y)
        apart = fit[~is_member[fit]]
        population = reference.Population(logs[apart], others[:, apart], seen[:, apart])
        parts = np.concatenate([fit, held])
        names = CALIBRATED.signals
        calibrated = reference.calibrated_inference(
            stream(self.key, f"attack: {CALIBRATED.name}"),
            jm.attacks.white_box.stacked(names, target, y)[:, parts],
            jm.attacks.white_box.stacked(names, of_models, y)[..., parts],
            seen[:, parts],
            config=NETWORK,
        )
        return {
            "negative loss": logs[held],
            "LiRA": reference.lira(odds[held], theirs[:, held], seen[:, held]),
            "RMIA": reference.rmia(
                logs[held], others[:, held], seen[:, held], population=population
            ),
            CALIBRATED.name: calibrated[len(fit) :],
        }


@pytest.fixture(scope="module", name="direct")
def direct_fixture() -> Direct:
    return Direct()


def assert_same(done: Any, name: str, expected: dict[str, Any], is_member: Any, held: Any) -> None:
    store, made = done
    folder = store / "runs" / made[name].run
    rows = [row["name"] for row in json.loads((folder / "results.json").read_bytes())["attacks"]]
    assert rows == list(expected)
    with np.load(folder / "scores.npz", allow_pickle=False) as scores:
        np.testing.assert_array_equal(scores["held_index"], held)
        np.testing.assert_array_equal(scores["is_member"], is_member[held])
        for key, row in zip(scores["keys"], rows, strict=True):
            np.testing.assert_array_equal(scores[str(key)], expected[row], err_msg=row)


@pytest.mark.parametrize(
    ("name", "index", "models"), [("first", 0, [2, 3, 4, 5]), ("last", 7, [0, 1, 2, 3])]
)
def test_a_model_is_attacked_as_by_direct_calls(
    name: str, index: int, models: list[int], done: Any, direct: Direct
):
    """Membership, models, signals and scores are those of the library, to the bit."""
    target = jax.tree.map(lambda leaf: leaf[index], direct.signals)
    is_member = direct.was_member[index]
    expected = direct.scores(target, is_member, models)
    assert_same(done, name, expected, is_member, direct.held)


def test_a_stranger_is_attacked_with_the_first_models(done: Any, direct: Direct):
    rank = np.random.default_rng((3, 1)).permutation(N)
    x, y, _ = direct.records
    trained = shadow.train(
        jax.random.fold_in(direct.key, 1),
        *(direct.architecture, x, y, np.stack([rank < 40, rank >= 40])),
        STRANGER.recipe.recipe(),
    )
    target = jax.tree.map(lambda leaf: leaf[0], direct.look(trained))
    expected = direct.scores(target, rank < 40, [0, 1, 2, 3])
    assert_same(done, "stranger", expected, rank < 40, direct.held)


def test_a_pool_is_trained_once_for_all_runs(done: Any):
    store, made = done
    below = ("intake", *LABELS, "layers", "metrics")
    assert made["first"].computed == ("records", "pool", "intake", "pool_signals", *below[1:])
    assert made["last"].computed == ("records", *below)
    assert made["last"].cached == ("pool", "pool_signals")
    assert made["stranger"].computed == ("records", "target", "intake", "signals", *below[1:])
    assert len(list(store.glob("stages/pool/*"))) == len(list(store.glob("stages/records/*"))) - 2


@pytest.mark.parametrize(
    ("changes", "computed"),
    [
        ({}, ()),
        ({"k": 6}, (*LABELS[1:], "layers", "metrics")),
        ({"spec": jm.SignalSpec(gradient_norm=True)}, ()),  # which the attacks read anyway
        ({"spec": jm.SignalSpec(scalars=("input norm",))}, ("pool_signals", *LABELS[3:])),
        ({"recipe": replace(RECIPE, epochs=1)}, ("pool", "pool_signals", *LABELS)),
    ],
    ids=str,
)
def test_a_changed_pool_computes_what_is_below_it(
    changes: Any, computed: Any, done: Any, tmp_path: Path
):
    store = Path(shutil.copytree(done[0], tmp_path / "store"))
    made = attempt(at(0, **changes), store)
    assert made.state == "done", made.error
    if "recipe" in changes:  # and all that follows
        computed = (*computed, "layers", "metrics")
    elif "spec" in changes and computed:
        computed = made.computed  # a larger spec is another program, whose last digits may differ
        assert computed[0] == "pool_signals" and "pool" in made.cached
    assert made.computed == computed
    assert attempt(at(0, **changes), store).computed == ()


def test_tables_have_means_over_targets_and_reports_a_layer_map(done: Any):
    store, made = done
    table = results.tidy(store)
    rows = [row for row in table.to_pylist() if row["target.stranger"] is None]
    assert {(row["target.index"], row["models_trained"]) for row in rows} == {
        (index, k) for index in (0, 7) for k in (0, 4)
    }
    compared = results.table(store, by=["target.stranger", "attack"], metrics=["auc"])
    lira = next(line for line in compared.lines if line.values == (None, "LiRA"))
    aucs = [row["auc"] for row in rows if row["attack"] == "LiRA"]
    assert lira.runs == 2 and lira.cells[0].mean == pytest.approx(np.mean(aucs), abs=1e-12)
    # What varies only as the index does is an axis, the index is none.
    assert results.table(store).by == ("target.stranger", "attack")
    for run in finished.runs(store).finished:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jm.metrics.MetricWarning)
            report = run_reports.report(run)
        assert report.layers is not None and report.layers.models == 4
        assert all(row.result.threshold is None for row in report.rows)
        index = run.fields["target.index"]
        stranger = run.fields["target.stranger"] is not None
        assert report.target.source.origin == (
            f"model {index} {'apart from' if stranger else 'of'} a pool of 8"
        )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (at(8), r"target\.index is 8; the pool's models are numbered 0 to 7"),
        (at(-1), r"target\.index is -1"),
        (at(0, models=1), r"target\.models is 1; .*even number, and at least 4"),
        (at(0, models=7), r"target\.models is 7; .*complementary pairs"),
        (at(0, k=8), r"target\.k is 8; of a pool of 8 .*from 2 to 6.*target\.models 10"),
        (at(0, k=3), r"target\.k is 3; .*even number"),
        (at(0, stranger=STRANGER, k=10), r"from 2 to 8"),
        (at(0, architecture=experiment.TargetFile(path=Path("a.onnx"))), r"made of target\.arch"),
        (make_config(references=experiment.ShadowModels(k=4)), "references is given, and the"),
        (make_config(attacks=(*ATTACKS, jm.Blind())), r"fractions\[1\] is 0, and blind baseline"),
        (make_config(fractions=(0.5, 0.2, 0.5)), "sum to at most 1"),
        (make_config(fractions=(0.0, 0.2, 0.5)), "first and the last are positive"),
    ],
)  # fmt: skip
def test_pools_without_such_a_target_are_refused(config: Any, words: str, tmp_path: Path):
    with pytest.raises(experiment.ConfigError, match=words):
        experiment.expand(config)
    store = tmp_path / "store"
    with pytest.raises(experiment.ConfigError, match=words):
        experiment.run(config, store)
    assert not list(store.glob("stages/*")), "something was computed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": experiment.Digits(members=2, nonmembers=2)},
         "a part of 25% of the 4 records has . members of the target and .* Give more records"),
        ({"data": experiment.Digits(members=1, nonmembers=1)}, "a part of"),
        ({"target": replace(POOL, stranger=replace(STRANGER, members=N))},
         f"target.stranger.members is {N} of {N} different records"),
    ],
)  # fmt: skip
def test_too_few_records_are_refused_before_training(changes: Any, words: str, tmp_path: Path):
    made = attempt(make_config(**changes), tmp_path / "store")
    assert made.state == "failed" and made.error and made.error.endswith("(in stage records)")
    with pytest.raises(ValueError, match=words):
        raise ValueError(made.error)
    assert not list((tmp_path / "store").glob("stages/*/*"))


def test_a_pool_that_diverges_is_refused(tmp_path: Path):
    wild = replace(RECIPE, optimizer="sgd", learning_rate=3e38)
    made = attempt(at(0, recipe=wild), tmp_path / "store")
    assert made.error and "8 of 8 models diverged (first: model 0)" in made.error
    assert not list((tmp_path / "store").glob("stages/pool/*"))


@dataclass(frozen=True, kw_only=True)
class Twice:
    """Digits, some of them twice."""

    def files(self) -> tuple[Path, ...]:
        return ()

    def read(self, key: jax.Array) -> jm.Records:
        return experiment.Digits(members=40, nonmembers=20).read(key).rows(np.r_[0:60, 10:30])


@dataclass(frozen=True, kw_only=True)
class OwnData(experiment.Config):
    """A run on them."""

    data: Twice = Twice()  # type: ignore[assignment]


def test_equal_records_go_to_the_same_models_and_parts(tmp_path: Path):
    """Of a Keras recipe, with thresholds from a select part."""
    pool = replace(POOL, models=4, k=2, architecture=experiment.Mlp(widths=(4,)))
    attacks = (jm.NegativeLoss(), jm.LogRatio())
    config = OwnData(study="own", seed=0, target=pool, attacks=attacks, fractions=(0.3, 0.2, 0.5))
    assert experiment.from_json(experiment.to_json(config)) == config
    made = attempt(config, tmp_path)
    assert made.state == "done", made.error
    (entry,) = tmp_path.glob("stages/pool_signals/*")
    was_member = np.load(entry / "was_member.npy")
    np.testing.assert_array_equal(was_member[:, 60:], was_member[:, 10:30])
    assert (was_member.sum(axis=0) == 2).all()
    (entry,) = tmp_path.glob("stages/records/*")
    with np.load(entry / "split.npz") as split:
        np.testing.assert_array_equal(split["is_member"], was_member[0])
        parts = [set(split[name]) for name in ("fit", "select", "held")]
    assert sum(map(len, parts)) == 80
    for twin, first in zip(range(60, 80), range(10, 30), strict=True):
        assert [twin in part for part in parts] == [first in part for part in parts]
    (run,) = finished.runs(tmp_path).finished
    assert run_reports.report(run).rows[0].result.threshold is not None


def test_runs_of_one_pool_share_its_stages(done: Any):
    store, _ = done
    looked = {
        name: graph.ahead(config, Store(store), {})
        for name, config in {**RUNS, "longer": at(0, recipe=replace(RECIPE, epochs=9))}.items()
    }
    first, last, stranger, longer = looked.values()
    assert first.first is last.first is stranger.first is None
    for label in ("pool", "pool_signals"):
        assert first.keys[label] == last.keys[label] == stranger.keys[label]
    assert not {"signals", "target"} & first.keys.keys()
    assert {"signals", "target"} <= stranger.keys.keys()
    assert first.keys["records"] != last.keys["records"]
    assert first.keys["attack:LiRA"] != last.keys["attack:LiRA"]
    # Of another recipe the records are there, and the pool is the first stage that is not.
    assert [*longer.keys] == ["records", "pool"]
    assert longer.keys["records"] == first.keys["records"]
    assert longer.first == longer.keys["pool"] != first.keys["pool"]
