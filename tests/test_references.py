"""Audits with reference models."""

import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxmeter as jm
from jaxmeter.attacks.interface import Evidence, ReferenceSignals
from jaxmeter.auditing.references import membership_of, seen_by, trained
from jaxmeter.data.records import content_ids
from jaxmeter.reference import ReferenceWarning
from jaxmeter.shadow import RecipeConfig, of_functions

N, D, CLASSES = 240, 30, 3
RECIPE = RecipeConfig(learning_rate=0.03, epochs=40, batch_size=20)
CALIBRATED = (
    jm.Lira(),
    jm.Lira(variance="own"),
    jm.Lira(statistic="gradient norm"),
    jm.Lira(statistic="margin"),
    jm.LiraOffline(),
    jm.LogRatio(),
    jm.LogRatioOffline(),
    jm.Rmia(),
    jm.RmiaOffline(),
    jm.RmiaOffline(a=0.5, name="RMIA, a given"),
    jm.Bavaria(),
    jm.AttackR(),
    jm.DifficultyCalibration(),
)


def network():
    """A linear classifier with more inputs than it can use: it learns its records by heart."""

    def init(key):
        return {"out/kernel": 0.1 * jax.random.normal(key, (D, CLASSES))}

    return of_functions(init, lambda params, state, x: x @ params["out/kernel"], input_shape=(D,))


def records(seed=0, n=N):
    """Random labels: what a model knows of them it has from having seen them."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2 * n, D)).astype("f"), random.integers(0, CLASSES, 2 * n)
    return jm.Records.of(members=(x[:n], y[:n]), nonmembers=(x[n:], y[n:]))


def target_of(data, seed=1, recipe=RECIPE):
    """A model trained on the members, as references are."""
    seen = np.stack([data.is_member, ~data.is_member])
    models = jm.shadow.train(jax.random.key(seed), network(), data.x, data.y, seen, recipe.recipe())
    return jm.shadow.model(models, 0)


@pytest.fixture(scope="module")
def audited():
    data = records()
    shadows = jm.Shadows(architecture=network(), recipe=RECIPE, k=16)
    attacks = (jm.NegativeLoss(), *CALIBRATED)
    return jm.audit(
        target_of(data), data, key=jax.random.key(0), attacks=attacks, references=shadows
    )


def test_every_attack_with_references_finds_members_and_says_what_it_had(audited):
    loss, *rows = audited.rows
    for row, attack in zip(rows, CALIBRATED, strict=True):
        assert row.result.auc_interval().low > 0.5, row.name
        assert row.budget.models_trained == 16
        n_select, n_fit = audited.parts[1][1], audited.parts[0][1]
        assert row.budget.known_nonmembers == n_select + n_fit * attack.needs_population
    assert loss.budget.models_trained == 0 and loss.spread is None
    names = [row.name for row in rows]
    assert names[:3] == ["LiRA", "LiRA, own variance", "LiRA, gradient norm"]
    assert audited.rows[3].budget.parameters == ("out/kernel",)  # a gradient's norm is a white box
    assert not audited.rows[1].budget.parameters


def test_the_models_in_turn_give_the_spread_and_the_target_is_one_of_them(audited):
    for row in audited.rows[1:]:
        assert row.spread.auc.shape == (16,)
        assert (row.spread.auc > 0.5).mean() > 0.9, row.name
        # the target was trained as they were
        assert abs(row.result.auc - row.spread.auc.mean()) < 0.12, row.name
    facts = audited.facts()["attacks"]
    assert facts[0]["over_targets"] is None
    auc = facts[1]["over_targets"]["auc"]
    assert auc["low"] <= auc["mean"] <= auc["high"] and len(auc["values"]) == 16
    assert facts[1]["over_targets"]["tpr_at_fpr"][1] == {
        "fpr": 0.001,
        **dict.fromkeys(("mean", "sd", "low", "high")),
        "values": [None] * 16,
    }  # too few records


def test_the_report_shows_both(audited, tmp_path):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(audited.table())
    text = console.export_text()
    assert "16 models trained" in text and "LiRA: mean" in text
    page = (audited.save(tmp_path / "out") / "report.html").read_text()
    assert "How much another target would differ" in page and "16 models in turn" in page
    assert "references" in audited.settings and "16 models" in audited.settings["references"]


def test_nothing_is_found_where_there_is_nothing():
    """The membership of the audit is drawn anew, so that no attack can know it."""
    data = records(seed=3)
    target = target_of(data)
    attacks = (jm.Lira(), jm.LogRatio(), jm.Rmia(), jm.Bavaria(), jm.LiraOffline())
    random = np.random.default_rng(7)
    inside, tried = 0, 0
    used = data._replace(is_member=random.permutation(data.is_member))
    models = trained(
        jax.random.key(5), jm.Shadows(architecture=network(), recipe=RECIPE, k=8), used
    )
    for seed in range(6):
        shuffled = data._replace(is_member=random.permutation(data.is_member))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = jm.audit(
                target, shuffled, key=jax.random.key(seed), attacks=attacks, references=models
            )
        for row in report.rows:
            low, high = row.result.auc_interval()
            inside, tried = inside + (low <= 0.5 <= high), tried + 1
    assert tried == 30 and inside >= 25
    assert all(row.spread is not None and row.spread.auc.mean() > 0.5 for row in report.rows)


def test_counts_of_the_models_that_saw_a_record_say_nothing():
    """In an exactly balanced design, if pairs were not left out together, they would say all."""

    def count(observed, references, was_member):
        return -was_member.sum(axis=0).astype(float)

    was_member = np.asarray(jm.shadow.balanced_membership(jax.random.key(0), 8, 100))
    scores = jm.reference.leave_out(count, np.zeros((8, 100)), was_member)
    assert np.ptp(scores) == 0
    with pytest.warns(ReferenceWarning, match="gives away whether the one"):
        alone = jm.reference.leave_out(
            count, np.zeros((8, 100)), was_member, pairs=np.zeros((0, 2), int)
        )
    np.testing.assert_array_equal(alone > alone.min(), was_member)


def test_given_models_are_matched_by_content_in_any_order():
    data = records(seed=2, n=60)
    shadows = jm.Shadows(architecture=network(), recipe=RECIPE, k=4)
    found = trained(jax.random.key(1), shadows, data)
    order = np.random.default_rng(0).permutation(len(data.y))
    moved = jm.References(
        models=found.models,
        x=np.asarray(found.x)[order].astype(np.float64),
        was_member=np.asarray(found.was_member)[:, order],
    )
    np.testing.assert_array_equal(membership_of(moved, data.x), found.was_member)
    attacks = (jm.Lira(), jm.Rmia())
    reports = [
        jm.audit(target_of(data), data, key=jax.random.key(3), attacks=attacks, references=models)
        for models in (found, moved)
    ]
    for one, other in zip(reports[0].rows, reports[1].rows, strict=True):
        np.testing.assert_array_equal(one.result.scores, other.result.scores)


def test_copies_go_to_the_same_models_and_a_copy_seen_is_a_record_seen():
    data = records(seed=4, n=30)
    twice = jm.Records(*(np.concatenate([part, part[:5]]) for part in data))
    shadows = jm.Shadows(architecture=network(), recipe=RECIPE, k=4)
    found = trained(jax.random.key(1), shadows, twice)
    np.testing.assert_array_equal(found.was_member[:, :5], found.was_member[:, -5:])
    assert (np.asarray(found.was_member).sum(axis=0) == 2).all()
    one = jm.References(
        models=found.models,
        x=np.concatenate([data.x, data.x[:1]]),
        was_member=np.concatenate(
            [np.zeros((4, len(data.y)), bool), np.ones((4, 1), bool)], axis=1
        ),
    )
    assert membership_of(one, data.x)[:, 0].all() and not membership_of(one, data.x)[:, 1:].any()
    assert len(np.unique(content_ids(twice.x))) == len(data.y)


def test_records_that_no_model_knows_are_said_and_offline_attacks_still_work():
    data, other = records(seed=5), records(seed=6)
    found = trained(
        jax.random.key(1), jm.Shadows(architecture=network(), recipe=RECIPE, k=8), other
    )
    with pytest.warns(ReferenceWarning, match="480 of 480 audited records are not among"):
        report = jm.audit(
            target_of(data),
            data,
            key=jax.random.key(0),
            attacks=[jm.LiraOffline()],
            references=found,
        )
    assert report.rows[0].result.auc_interval().low > 0.5
    assert report.rows[0].spread is None  # no model saw any of them
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="no record was seen by some of the 8 reference models"),
    ):
        warnings.simplefilter("ignore", ReferenceWarning)
        jm.audit(
            target_of(data), data, key=jax.random.key(0), attacks=[jm.Lira()], references=found
        )


def test_a_target_unlike_its_references_is_noticed():
    data = records(seed=8)
    shorter = RecipeConfig(learning_rate=0.001, epochs=1, batch_size=20)
    shadows = jm.Shadows(architecture=network(), recipe=shorter, k=8)
    with pytest.warns(ReferenceWarning, match="the target is unlike its reference models"):
        jm.audit(
            target_of(data),
            data,
            key=jax.random.key(0),
            attacks=[jm.LiraOffline()],
            references=shadows,
        )


def test_models_that_are_not_finite_are_left_out_and_said():
    data = records(seed=9, n=40)
    found = trained(jax.random.key(1), jm.Shadows(architecture=network(), recipe=RECIPE, k=4), data)
    params = {name: np.array(value) for name, value in found.models.params.items()}
    params["out/kernel"][1] = np.nan
    broken = jm.References(
        models=found.models.replace(params=params), x=found.x, was_member=found.was_member
    )
    with pytest.warns(ReferenceWarning, match="1 of 4 reference models"):
        seen = seen_by(broken, data, jm.SignalSpec(loss=False, label=False))
    assert seen.was_member.shape == (3, 80) and seen.signals.logits.shape == (3, 80, CLASSES)
    params["out/kernel"][1:] = np.nan
    with (
        pytest.warns(ReferenceWarning),
        pytest.raises(ValueError, match="1 of 4 reference models are finite"),
    ):
        seen_by(broken, data, jm.SignalSpec(loss=False, label=False))


def test_the_host_budget_is_for_the_signals_of_the_target_and_of_all_models():
    data, stages = records(n=40), []
    target = target_of(data)
    shadows = jm.Shadows(architecture=network(), recipe=RECIPE, k=8)

    def audited(references, host_budget):
        stages.clear()
        return jm.audit(
            target,
            data,
            key=jax.random.key(0),
            attacks=[jm.NegativeLoss(), jm.LogRatio()],
            references=references,
            host_budget=host_budget,
            progress=lambda stage, *_: stages.append(stage),
        )

    logits, loss = 4 * 80 * CLASSES, 4 * 80
    labels = 80 * CLASSES  # one-hot, in bytes; log-ratios read the models' logits alone
    size = logits + loss + labels + 8 * logits
    found = trained(jax.random.key(1), shadows, data)
    for references in (shadows, found):
        assert len(audited(references, size).rows) == 2
        with pytest.raises(ValueError, match=r"80 records by 8 models take .* the host budget of"):
            audited(references, size - 1)
        assert set(stages) == {"signals"}


def test_what_does_not_fit_is_refused_before_any_work():
    data = records(n=40)
    target = jm.from_function(lambda p, s, x: x @ p["w"], {"w": jnp.ones((D, CLASSES))})
    with pytest.raises(ValueError, match="LiRA: compared with reference models, of which there"):
        jm.audit(target, data, key=jax.random.key(0), attacks=[jm.Lira()])
    with pytest.raises(ValueError, match="none of the attacks reads reference models"):
        jm.audit(
            target,
            data,
            key=jax.random.key(0),
            attacks=[jm.NegativeLoss()],
            references=jm.Shadows(architecture=network()),
        )
    with pytest.raises(ValueError, match="k=5 reference models; the number must be even"):
        jm.Shadows(architecture=network(), k=5)
    models = jm.shadow.stack([target, target])
    with pytest.raises(ValueError, match=r"it must be bool \[2, 80\]"):
        jm.References(models=models, x=data.x, was_member=np.ones((3, 80), bool))
    given = jm.References(models=models, x=data.x[:, :4], was_member=np.ones((2, 80), bool))
    with pytest.raises(ValueError, match="must be prepared alike to be recognised"):
        membership_of(given, data.x)
    halves = jm.References(models=models, x=data.x, was_member=np.ones((2, 80), bool))
    with pytest.raises(ValueError, match="not the same numbers in both"):
        membership_of(halves, (255 * data.x).astype(np.int32))
    part = Evidence(data, jm.extract(target, data, jm.SignalSpec()))
    with pytest.raises(ValueError, match="there are none: pass"):
        jm.Lira().run(jax.random.key(0), part, part, part)


def test_rows_of_what_models_saw_are_rows_of_records():
    signals = jm.Signals({"logits": jnp.arange(12.0).reshape(2, 3, 2)}, {}, {}, None, None)
    seen = ReferenceSignals(signals, np.array([[True, False, True], [False, True, False]]))
    some = seen.rows(np.array([2, 0]))
    np.testing.assert_array_equal(some.signals.logits[0], [[4, 5], [0, 1]])
    np.testing.assert_array_equal(some.was_member, [[True, True], [False, False]])
