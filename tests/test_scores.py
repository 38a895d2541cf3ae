import numpy as np
import pytest
from scipy import stats

import jaxmeter as jm
from jaxmeter import scores
from jaxmeter.signals import Signals

LOGITS = np.random.default_rng(0).normal(scale=3, size=(50, 6)).astype("f")
Y = np.arange(50) % 6


def signals_of(logits, y=Y, loss=None) -> Signals:
    logits = np.asarray(logits)
    label = np.eye(logits.shape[1], dtype=bool)[y]
    return Signals({"logits": logits}, {}, {}, loss, label)


def probabilities(logits):
    z = np.asarray(logits, np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def brute_force(name):
    """Each score written out, record by record, from probabilities in float64."""
    found = []
    for p, y, z in zip(probabilities(LOGITS), Y, LOGITS.astype(np.float64), strict=True):
        rest = [i for i in range(len(p)) if i != y]
        found.append(
            {
                "negative_loss": np.log(p[y]),
                "confidence": p[y],
                "log_odds": np.log(p[y] / (1 - p[y])),
                "entropy": -stats.entropy(p),
                "modified_entropy": (1 - p[y]) * np.log(p[y])
                + sum(p[i] * np.log(1 - p[i]) for i in rest),
                "logit_margin": z[y] - max(z[i] for i in rest),
                "correctness": float(p.argmax() == y),
            }[name]
        )
    return np.array(found)


SCORES = [
    "negative_loss",
    "confidence",
    "log_odds",
    "entropy",
    "modified_entropy",
    "logit_margin",
    "correctness",
]


@pytest.mark.parametrize("name", SCORES)
def test_equals_brute_force(name):
    found = getattr(scores, name)(signals_of(LOGITS))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, brute_force(name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_a_constant_added_to_the_logits_changes_nothing(name):
    score = getattr(scores, name)
    shifted = score(signals_of(LOGITS.astype(np.float64) + 64))
    np.testing.assert_allclose(shifted, score(signals_of(LOGITS)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_saturated_logits_stay_finite(name):
    found = getattr(scores, name)(signals_of([[800.0, 0, 0], [0, 800, 0], [-800, 0, 1]], [0, 0, 0]))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["negative_loss", "log_odds", "modified_entropy", "logit_margin"])
def test_confident_records_keep_distinct_scores(name):
    """Where a float32 softmax gives 1 for all of them."""
    gaps = np.arange(20.0, 340.0, 20.0)
    found = getattr(scores, name)(
        signals_of(np.stack([gaps, 0 * gaps, 0 * gaps], 1), 0 * gaps.astype(int))
    )
    assert (np.diff(found) > 0).all()


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_ruled_out_counts_for_nothing():
    """A logit of minus infinity, as masked heads give."""
    with_masked = signals_of([[1.0, 0.5, -np.inf]], [0])
    without = signals_of([[1.0, 0.5]], [0])
    for score in (scores.entropy, scores.modified_entropy, scores.negative_loss):
        np.testing.assert_allclose(score(with_masked), score(without))


def test_two_classes_and_exact_values():
    found = signals_of([[2.0, 0.0], [2.0, 0.0]], [0, 1])
    np.testing.assert_allclose(scores.log_odds(found), [2, -2])
    np.testing.assert_allclose(
        scores.negative_loss(found), [-np.log1p(np.exp(-2)), -np.log1p(np.exp(2))]
    )


def test_loss_is_used_where_there_are_no_logits():
    only_loss = Signals({}, {}, {}, np.array([0.5, 2.0], "f"), None)
    assert scores.negative_loss(only_loss).tolist() == [-0.5, -2.0]
    with pytest.raises(ValueError, match="neither a loss nor logits"):
        scores.negative_loss(Signals({}, {}, {}, None, None))
    with pytest.raises(ValueError, match="hold no logits"):
        scores.entropy(only_loss)


def test_gradient_norm_joins_layers():
    norms = {"a": np.array([3.0, 0.0], "f"), "b": np.array([4.0, 1.0], "f")}
    assert scores.gradient_norm(Signals({}, {}, norms, None, None)).tolist() == [-5.0, -1.0]
    with pytest.raises(ValueError, match="no gradient norms"):
        scores.gradient_norm(signals_of(LOGITS))


def test_population_percentile_has_the_false_positive_rate_it_promises():
    random = np.random.default_rng(1)
    rates = [
        np.mean(
            scores.population_percentile(random.normal(size=500), random.normal(size=500)) > 0.9
        )
        for _ in range(200)
    ]
    assert np.mean(rates) == pytest.approx(0.1, abs=4 * np.std(rates) / np.sqrt(200))
    assert scores.population_percentile([0.0, 1.0, 2.0, 5.0], [1.0, 1.0, 3.0, 4.0]).tolist() == [
        0.0,
        0.25,
        0.5,
        1.0,
    ]
    with pytest.raises(ValueError, match="population is empty"):
        scores.population_percentile([1.0], [])


def test_class_wise_thresholds_separate_each_class():
    """Classes whose members lie at different levels: no common threshold, a perfect one each."""
    level = np.repeat([0.0, 10.0], 20)
    known = np.tile([True, False], 20)
    y = (level > 0).astype(int)
    values = level + np.where(known, 1.0, -1.0)
    found = scores.class_wise_thresholds(values, y, values, y, known)
    assert ((found >= 0) == known).all()
    unseen = scores.class_wise_thresholds([6.0, -6.0], [2, 2], values, y, known)
    assert unseen[0] > 0 > unseen[1]


def test_published_outputs_give_the_published_figures(shared_data):
    """Location-30 outputs of inspire-group/membership-inference-evaluation, membership known."""
    archive = np.load(shared_data / "memguard_location_predictions.npz")
    part = {
        side: signals_of(archive[f"{side}_logits"], archive[f"{side}_y"].astype(int))
        for side in ("target", "shadow")
    }
    member = {side: archive[f"{side}_member"].astype(bool) for side in part}
    auc = {
        score: jm.evaluate(score(part["target"]), member["target"]).auc
        for score in (scores.confidence, scores.modified_entropy)
    }
    assert auc[scores.confidence] == pytest.approx(0.870, abs=0.0006)
    assert auc[scores.modified_entropy] == pytest.approx(0.871, abs=0.0006)
    accuracy = {}
    for score in (scores.confidence, scores.modified_entropy):
        found = scores.class_wise_thresholds(
            score(part["target"]),
            part["target"].y,
            score(part["shadow"]),
            part["shadow"].y,
            member["shadow"],
        )
        accuracy[score] = np.mean((found >= 0) == member["target"])
    right = scores.correctness(part["target"]) > 0.5
    assert accuracy[scores.confidence] == pytest.approx(0.763, abs=0.0006)
    assert accuracy[scores.modified_entropy] == pytest.approx(0.780, abs=0.0006)
    assert np.mean(right == member["target"]) == pytest.approx(0.687, abs=0.0006)
