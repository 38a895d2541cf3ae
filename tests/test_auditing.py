import warnings

import jax
import numpy as np
import pytest

import jaxmeter as jm
from helpers import linear_target, mlp_target, some_records
from jaxmeter.attacks.interface import Evidence
from jaxmeter.auditing.rows import measured
from jaxmeter.cli import demo
from jaxmeter.data.npz import read_npz
from jaxmeter.data.splits import split_indices
from jaxmeter.inference import fitting
from jaxmeter.metrics import MetricWarning, best_threshold
from jaxmeter.report import findings
from jaxmeter.report.report import Report
from jaxmeter.signals import white_box

QUICK = jm.FitConfig(epochs=3, members=5)


def test_learned_takes_its_spec_by_position():
    spec = jm.SignalSpec(gradients=("out",))
    assert jm.Learned(spec) == jm.Learned(spec=spec)
    assert jm.Learned(spec).name == "white box" and jm.Learned(jm.SignalSpec()).name == "black box"


def planted_audit(seed: int = 0, **options) -> Report:
    """A linear target that was fitted to its members' labels, and random others."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(600, 5)).astype("f")
    target = linear_target(d=5, classes=3)
    y = random.integers(0, 3, size=600)
    predicted = np.asarray(target(x).logits).argmax(1)
    y[:300] = np.where(random.random(300) < 0.7, predicted[:300], y[:300])
    records = jm.Records.of(members=(x[:300], y[:300]), nonmembers=(x[300:], y[300:]))
    return jm.audit(target, records, key=jax.random.key(seed), **options)


@pytest.fixture(scope="module")
def report():
    return planted_audit(
        attacks=[
            *jm.TRAINING_FREE,
            jm.Entropy(),
            jm.LogitMargin(),
            jm.ClassWise(),
            jm.Learned(spec=jm.SignalSpec(), config=QUICK),
            jm.Learned(config=QUICK),
            jm.Blind(),
        ]
    )


def test_all_rows_stand_on_the_same_held_out_records(report):
    assert [row.name for row in report.rows] == [
        "negative loss",
        "confidence",
        "modified entropy",
        "gradient norm",
        "entropy",
        "logit margin",
        "class-wise modified entropy",
        "black box",
        "white box",
        "blind baseline",
    ]
    assert report.parts == ((120, 120), (30, 30), (150, 150))
    for row in report.rows:
        assert (row.result.is_member == report.held.is_member).all()
    by_name = {row.name: row for row in report.rows}
    assert by_name["negative loss"].result.auc > 0.6
    # One ranking, two ways to write it.
    assert by_name["confidence"].result.auc == pytest.approx(by_name["negative loss"].result.auc)


def test_budgets_say_what_was_given(report):
    by_name = {row.name: row.budget for row in report.rows}
    assert by_name["negative loss"].known_members == 30  # the threshold alone
    assert by_name["negative loss"].parameters == ()
    assert by_name["white box"].known_members == by_name["blind baseline"].known_members == 150
    assert by_name["white box"].parameters == ("out/kernel", "out/bias")
    assert by_name["gradient norm"].parameters == ("out/kernel", "out/bias")
    assert by_name["black box"].reads == ("logits", "loss", "label")
    assert by_name["black box"].parameters == ()
    assert by_name["blind baseline"].queries == 0


def test_an_inner_layers_output_is_no_black_box():
    attacks = {
        name: jm.Learned(jm.SignalSpec(outputs=outputs), name=name, config=QUICK)
        for name, outputs in {"answer": ("logits", "c"), "inside": ("b", "logits", "a")}.items()
    }
    target, records = mlp_target(), some_records(200, (6,), 4)
    every = [jm.NegativeLoss(), *attacks.values()]
    report = jm.audit(target, records, key=jax.random.key(0), attacks=every)
    layers = {row.name: row.budget.layers for row in report.rows}
    assert layers == {"negative loss": (), "answer": (), "inside": ("b", "a")}
    said = {row.name: findings.access(row) for row in report.rows}
    assert said == {"negative loss": "black box", "answer": "black box", "inside": "white box"}


def test_thresholds_come_from_the_select_part(report):
    row = report.rows[0]
    assert row.result.threshold not in row.result.scores
    flagged = row.result.scores >= row.result.threshold
    tpr = flagged[report.held.is_member].mean()
    tnr = (~flagged[~report.held.is_member]).mean()
    assert row.result.accuracy == pytest.approx((tpr + tnr) / 2)


def test_the_threshold_is_the_select_parts_best_whatever_the_held_out_part_holds():
    random = np.random.default_rng(0)
    truth = [np.arange(60) % 2 == 0] * 3
    select = random.normal(size=60) + truth[1]
    expected = best_threshold(select, truth[1])
    for shift in (0.0, 5.0, -5.0):
        held = random.normal(size=60) + truth[2] + shift
        row = measured(
            jm.NegativeLoss(),
            jm.AttackOutput(select, held),
            spec=None,
            target=mlp_target().spec,
            truth=truth,
            seconds=0.0,
        )
        assert row.result.threshold == expected


def test_held_index_points_into_the_callers_records():
    target, records = mlp_target(), some_records(200, (6,), 4)
    report = jm.audit(
        target,
        records,
        key=jax.random.key(0),
        attacks=[jm.NegativeLoss()],
        fractions=(0.2, 0.3, 0.5),
    )
    again = records.rows(report.held_index)
    for a, b in zip(again, report.held, strict=True):
        assert (a == b).all()
    expected = jm.scores.negative_loss(jm.extract(target, again))
    np.testing.assert_allclose(report.rows[0].result.scores, expected, rtol=1e-6)


def test_the_same_key_gives_the_same_scores():
    first, again = (
        planted_audit(seed=0, attacks=[jm.Learned(config=QUICK), jm.Blind()]) for _ in range(2)
    )
    for a, b in zip(first.rows, again.rows, strict=True):
        assert (a.result.scores == b.result.scores).all()


@pytest.mark.parametrize(
    "attack",
    [jm.Learned(config=QUICK), jm.ClassWise(), jm.Blind(), jm.GradientNorm(), jm.NegativeLoss()],
    ids=lambda attack: attack.name,
)
def test_held_out_membership_is_never_looked_at(attack):
    target, records = mlp_target(), some_records(200, (6,), 4)
    spec = attack.reads(target)
    signals = jm.extract(target, records, (spec or jm.SignalSpec()).resolved(target))
    known, select, held = (
        Evidence(records.rows(index), signals.rows(index))
        for index in split_indices(jax.random.key(0), records)
    )
    flipped = held._replace(records=held.records._replace(is_member=~held.records.is_member))
    before = attack.run(jax.random.key(3), known, select, held)
    after = attack.run(jax.random.key(3), known, select, flipped)
    assert (np.asarray(before.held) == np.asarray(after.held)).all()


def test_warnings_are_passed_on_and_noted():
    target = linear_target()
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 5)).astype("f")
    y = np.asarray(target(x).logits).argmax(1)
    # Members with the wrong label, others with the right one: the sign is wrong.
    records = jm.Records.of(members=(x[:200], (y[:200] + 1) % 3), nonmembers=(x[200:], y[200:]))
    with pytest.warns(MetricWarning, match="sign"):
        report = jm.audit(target, records, key=jax.random.key(0), attacks=[jm.NegativeLoss()])
    assert any("sign" in note for note in report.notes)


def test_bad_audits_are_refused():
    target, records = mlp_target(), some_records(200, (6,), 4)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="give at least one, and each its own name"):
        jm.audit(target, records, key=key, attacks=[])
    with pytest.raises(ValueError, match="each its own name"):
        jm.audit(target, records, key=key, attacks=[jm.Blind(), jm.Blind()])
    with pytest.raises(ValueError, match=r"no trainable layer 'd'.*1: a, 2: b, 3: c"):
        spec = jm.SignalSpec(gradients=("d",))
        jm.audit(target, records, key=key, attacks=[jm.Learned(spec=spec)])
    with pytest.raises(ValueError, match="device budget"):
        jm.audit(target, records, key=key, attacks=[jm.NegativeLoss()], device_budget=100)
    one_class = records._replace(is_member=np.ones(200, bool))
    with pytest.raises(ValueError, match="80 members and 0 non-members"):
        jm.audit(target, one_class, key=key, attacks=[jm.NegativeLoss()])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The demo's target and records."""
    folder = tmp_path_factory.mktemp("digits")
    members, nonmembers = demo.train(folder, seed=0)
    records = jm.Records.of(members=read_npz(members), nonmembers=read_npz(nonmembers))
    return jm.load_target(folder / "target.keras"), records


def test_the_demo_leaks(digits):
    """Power: on records it was not fitted on, the white box does better than chance."""
    target, records = digits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        report = jm.audit(target, records, key=jax.random.key(0))
    results = {row.name: row.result for row in report.rows}
    assert results["white box"].auc_interval().low > 0.5
    assert results["blind baseline"].auc_interval().low < 0.5
    for name in ("black box", "white box"):
        assert results[name].auc_difference(results["negative loss"]).high >= 0
    assert report.accuracy[0] > 0.99 > report.accuracy[1]


def test_shuffled_membership_finds_nothing(digits):
    """Null: the 95% interval contains 0.5 in at least 16 of 20 shuffles, whatever the attack."""
    target, records = digits
    spec = white_box(target).resolved(target)
    black = jm.SignalSpec().resolved(target)
    signals = jm.extract(
        target, records, spec.union(jm.SignalSpec(gradient_norm=True).resolved(target))
    )
    contains = {name: 0 for name in ("loss", "gradient norm", "black box", "white box")}
    fits_compiled = None
    for seed in range(20):
        key = jax.random.key(seed)
        truth = np.random.default_rng(seed).permutation(records.is_member)
        shuffled = records._replace(is_member=truth)
        known, select, held = split_indices(key, shuffled)
        found = {
            "loss": jm.scores.negative_loss(signals.rows(held)),
            "gradient norm": jm.scores.gradient_norm(signals.rows(held)),
        }
        attack = jm.inference_model(members=3)
        for name, reads in (("black box", black), ("white box", spec)):
            mine = signals.only(reads)
            fitted = jm.fit(
                key,
                attack,
                mine.rows(known),
                truth[known],
                select=(mine.rows(select), truth[select]),
                folds=3,
                epochs=8,
            )
            found[name] = attack.score(fitted.params, mine.rows(held))
        for name, scores in found.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MetricWarning)
                low, high = jm.evaluate(scores, truth[held]).auc_interval()
            contains[name] += low <= 0.5 <= high
        fits_compiled = fits_compiled or fitting.run._cache_size()
    assert fitting.run._cache_size() == fits_compiled  # 40 fits, two programs
    assert min(contains.values()) >= 16, contains
