"""An attack that somebody else wrote, from what `jaxmeter` exports, runs wherever others do."""

import json
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

import jaxmeter as jm
from jaxmeter import experiment


@dataclass(frozen=True, kw_only=True)
class LargestLogit:
    name: str = "largest logit"
    access = "outputs"
    fits = needs_references = needs_population = False

    def reads(self, target):
        return jm.SignalSpec(loss=False, label=False)

    def run(self, key, fit, select, held):
        return jm.AttackOutput(*(part.signals.logits.max(axis=1) for part in (select, held)))


@dataclass(frozen=True, kw_only=True)
class MeanDifference:
    """Reads the loss of reference models, which no attack of the package does."""

    name: str = "mean difference"
    factor: float = 1.0
    access = "outputs"
    needs_references = True
    fits = needs_population = False

    def reads(self, target):
        return jm.SignalSpec(outputs=(), label=False)

    def run(self, key, fit, select, held):
        def score(part):
            out = np.ma.array(part.references.signals.loss, mask=part.references.was_member)
            return self.factor * (out.mean(axis=0).filled(0) - part.signals.loss)

        return jm.AttackOutput(score(select), score(held))


def small():
    net = jm.from_function(lambda p, s, x: x @ p["w"], {"w": np.ones((3, 2), "f")})
    x, y = np.random.default_rng(0).normal(size=(80, 3)).astype("f"), np.arange(80) % 2
    return net, jm.Records.of(members=(x[:40], y[:40]), nonmembers=(x[40:], y[40:]))


def test_it_is_an_attack_and_a_class_is_none():
    assert isinstance(LargestLogit(), jm.AttackConfig)
    assert all(isinstance(attack, jm.AttackConfig) for attack in jm.TRAINING_FREE)
    assert all(isinstance(attack, jm.AttackConfig) for attack in jm.WITH_REFERENCES)
    assert not isinstance(jm.SignalSpec(), jm.AttackConfig)


def test_its_row_stands_beside_the_others(tmp_path):
    net, records = small()
    report = jm.audit(net, records, key=jax.random.key(0), attacks=[LargestLogit(), jm.Blind()])
    row = report.rows[0]
    held = report.held
    expected = net(held.x).logits.max(axis=1)
    np.testing.assert_allclose(row.result.scores, expected, rtol=1e-6)
    assert row.budget.known_members == report.parts[1][0]  # the select part's alone
    assert "largest logit" in str(report)
    report.save(tmp_path / "out")
    assert "largest logit" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_it_reads_what_it_asks_for_of_reference_models():
    net, records = small()
    rng = np.random.default_rng(1)
    models = [
        jm.from_function(net.apply, {"w": rng.normal(size=(3, 2)).astype("f")}) for _ in range(4)
    ]
    was_member = np.zeros((4, 80), bool)
    was_member[::2, ::2] = was_member[1::2, 1::2] = True
    references = jm.References(models=jm.shadow.stack(models), x=records.x, was_member=was_member)
    report = jm.audit(
        net, records, key=jax.random.key(0), attacks=[MeanDifference()], references=references
    )
    held, index = report.held, report.held_index
    own = np.asarray(jm.extract(net, held, jm.SignalSpec()).loss)
    theirs = np.stack([jm.extract(model, held, jm.SignalSpec()).loss for model in models])
    out = np.where(was_member[:, index], 0, theirs).sum(axis=0) / 2
    np.testing.assert_allclose(report.rows[0].result.scores, out - own, rtol=1e-5, atol=1e-6)
    assert report.rows[0].budget.models_trained == 4
    with pytest.raises(ValueError, match="mean difference.*none"):
        jm.audit(net, records, key=jax.random.key(0), attacks=[MeanDifference()])


def test_a_study_runs_it_and_its_settings_name_the_run(tmp_path):
    config = experiment.Config(
        study="own",
        seed=0,
        data=experiment.Digits(members=60, nonmembers=60),
        target=experiment.Mlp(widths=(4,), training=experiment.Training(epochs=1)),
        attacks=(LargestLogit(), MeanDifference()),
        references=experiment.ShadowModels(k=2, recipe=jm.shadow.RecipeConfig(epochs=1)),
    )
    folder = experiment.run(config, tmp_path / "store")
    results = json.loads((folder / "results.json").read_text())
    names = [attack["name"] for attack in results["attacks"]]
    assert names == ["largest logit", "mean difference"]
    assert experiment.from_json(experiment.to_json(config)) == config
    other = replace(config, attacks=(LargestLogit(), MeanDifference(factor=2.0)))
    assert experiment.to_json(other) != experiment.to_json(config)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"access": "labels"}, ValueError, "'labels' and reads.*white box"),
        ({"access": "all"}, ValueError, "'all'; it is one of records, labels"),
        ({"run": None}, TypeError, "lacks run"),
    ],
)
def test_what_is_no_attack_is_told_why(changes, error, match):
    net, records = small()
    body = {**vars(LargestLogit), "reads": lambda self, target: jm.SignalSpec(gradient_norm=True)}
    body = {k: v for k, v in (body | changes).items() if v is not None and k != "__dict__"}
    odd = type("Odd", (), body)()
    with pytest.raises(error, match=match):
        jm.audit(net, records, key=jax.random.key(0), attacks=[odd])
    with pytest.raises(TypeError, match="It is a class"):
        jm.audit(net, records, key=jax.random.key(0), attacks=[LargestLogit])
