"""A tested attack as a `Report`, and as the files of its run."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from jaxmeter.attacks.interface import AttackOutput, Epoch
from jaxmeter.attacks.training_free import GradientNorm, NegativeLoss
from jaxmeter.auditing.assembly import versions
from jaxmeter.auditing.rows import counts, declined, measured
from jaxmeter.data.records import Records
from jaxmeter.inference.attack import Fitted
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.meter import logs
from jaxmeter.meter.figures import risk_figure
from jaxmeter.report import findings
from jaxmeter.report.figures import gradient_norms
from jaxmeter.report.figures.roc import roc_figure
from jaxmeter.report.report import Report
from jaxmeter.scores import correctness
from jaxmeter.signals.spec import ResolvedSpec, Signals
from jaxmeter.target import Target


class TrainedTarget(NamedTuple):
    """What fitting an attack left for its test.

    Attributes:
      name: the run's.
      spec: what the attack reads.
      target: the classifier it was fitted on.
      fitted: the fit.
      truth: membership of the records that it was fitted on, and of those that chose the epoch.
      select: all signals of the latter.
      select_scores: the attack's scores of them.
      seconds: extracting and fitting took.
    """

    name: str
    spec: ResolvedSpec
    target: Target
    fitted: Fitted
    truth: tuple[NDArray, NDArray]
    select: Signals
    select_scores: NDArray
    seconds: float


class _NamedScores(NamedTuple):
    """What a report wants to know of an attack."""

    name: str
    fits: bool = True
    needs_population: bool = False


def reported(
    trained: TrainedTarget,
    target: Target,
    test: Records,
    signals: Signals,
    scores: NDArray,
    *,
    settings: dict[str, Any],
    device: str,
) -> Report:
    """The attack's row, the loss threshold's and the gradient norm's, on the test records.

    Args:
      trained: what was fitted.
      target: the classifier that was attacked.
      test: its records.
      signals: all signals of them.
      scores: the attack's scores of them, `[n]`.
      settings: as the page shows them.
      device: likewise.
    """
    epochs = enumerate(zip(*trained.fitted.history[:3], strict=True))
    history = tuple(Epoch(i, *map(float, epoch)) for i, epoch in epochs)
    best = trained.fitted.best_epoch
    tried: list[tuple[Any, AttackOutput, ResolvedSpec, float]] = [
        (
            _NamedScores(trained.name),
            AttackOutput(trained.select_scores, scores, history, best),
            trained.spec,
            trained.seconds,
        )
    ]
    for attack in (NegativeLoss(), *([GradientNorm()] if signals.gradient_norms else [])):
        score = type(attack).score
        spec = attack.reads(target)
        assert spec is not None
        found = AttackOutput(score(trained.select), score(signals))
        tried.append((attack, found, spec.resolved(trained.target), 0.0))
    truth = [*trained.truth, test.is_member]
    rows = [
        measured(attack, found, spec=spec, target=trained.target.spec, truth=truth, seconds=seconds)
        for attack, found, spec, seconds in tried
    ]
    correct, held = correctness(signals), test.is_member
    return Report(
        rows=tuple(rows),
        held=test,
        held_index=np.arange(len(held)),
        parts=tuple(map(counts, truth)),  # type: ignore[arg-type]
        target=target.spec,
        accuracy=(float(correct[held].mean()), float(correct[~held].mean())),
        seed=str(settings["seed"]),
        signal_seconds=0.0,
        signal_bytes=tree_bytes(signals),
        notes=tuple(declined(rows)),
        versions=versions(),
        device=device,
        settings=dict(settings),
    )


def write(places: logs.Places, trained: TrainedTarget, report: Report, left_out: int) -> None:
    """The arrays, `results.json`, events, figures and the report's own folder."""
    row, test = report.rows[0], report.held
    probabilities = scipy.special.expit(row.result.scores)
    logs.write_arrays(places, dict(_arrays(test, probabilities)))
    facts = report.facts()
    logs.write_results(
        places,
        {
            "run": places.name,
            "target_accuracy": facts["target"]["accuracy"],
            "best_epoch": row.best_epoch,
            "left_out": left_out,
            "attack": facts["attacks"][0],
            "beside": facts["attacks"][1:],
            "settings": report.settings,
        },
    )
    logs.write_test(places, trained.fitted, row.result)
    drawn = {
        "privacy_risk": risk_figure(probabilities, test.is_member, "all classes"),
        "roc": roc_figure(report),
    }
    norms = findings.gradient_norms(report)
    if norms is not None:
        drawn["gradient_norm"] = gradient_norms.gradient_norm_figure(norms, test.y, test.is_member)
    logs.write_figures(places, drawn)
    for label in np.unique(test.y):
        mine = test.y == label
        one = risk_figure(probabilities[mine], test.is_member[mine], f"class {label}")
        logs.write_figures(places, {f"privacy_risk_label{label}": one})
    report.save(places.results / "report")


def _arrays(test: Records, probabilities: NDArray) -> Iterator[tuple[str, NDArray]]:
    kinds = (("member", "m", test.is_member), ("nonmember", "nm", ~test.is_member))
    for kind, short, mine in kinds:
        yield f"{kind}_probs", probabilities[mine]
        yield f"{short}_features", test.x[mine]
        yield f"{short}_labels", test.y[mine]
