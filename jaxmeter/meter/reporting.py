"""A tested attack as a `Report`, and as the files of its run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy
from numpy.typing import NDArray

from jaxmeter.attacks.interface import AttackOutput, Epoch, Evidence
from jaxmeter.attacks.suite import spec_of
from jaxmeter.attacks.training_free import GradientNorm, NegativeLoss
from jaxmeter.auditing.assembly import accuracy_of, assembled
from jaxmeter.auditing.layers import measured_layers
from jaxmeter.auditing.rows import counts, measured
from jaxmeter.data.records import Records
from jaxmeter.inference.attack import Fitted
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.meter import logs
from jaxmeter.meter.figures import risk_figure
from jaxmeter.report import findings
from jaxmeter.report.figures import gradient_norms
from jaxmeter.report.figures.roc import roc_figure
from jaxmeter.report.report import Report
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
      select_records: the latter.
      select: all signals of them.
      select_scores: the attack's scores of them.
      seconds: extracting and fitting took.
    """

    name: str
    spec: ResolvedSpec
    target: Target
    fitted: Fitted
    truth: tuple[NDArray, NDArray]
    select_records: Records
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
    seconds: float,
    settings: dict[str, Any],
    device: str,
) -> Callable[..., Report]:
    """The attack's row, the loss threshold's and the gradient norm's, on the test records.

    What comes back takes the notes and gives the report.

    Args:
      trained: what was fitted.
      target: the classifier that was attacked.
      test: its records.
      signals: all signals of them.
      scores: the attack's scores of them, `[n]`.
      seconds: extracting their signals took.
      settings: as the page shows them.
      device: likewise.
    """
    epochs = enumerate(zip(*trained.fitted.history[:3], strict=True))
    history = tuple(Epoch(i, *map(float, epoch)) for i, epoch in epochs)
    best = trained.fitted.best_epoch
    tried: list[tuple[Any, AttackOutput, ResolvedSpec | None, float]] = [
        (
            _NamedScores(trained.name),
            AttackOutput(trained.select_scores, scores, history, best),
            trained.spec,
            trained.seconds,
        )
    ]
    key = jax.random.key(0)  # both attacks leave nothing to chance
    select, held = Evidence(trained.select_records, trained.select), Evidence(test, signals)
    for attack in (NegativeLoss(), *([GradientNorm()] if signals.gradient_norms else [])):
        spec = spec_of(attack, trained.target)
        found = attack.run(key, select, select, held)  # neither is fitted
        tried.append((attack, found, spec, 0.0))
    truth = [*trained.truth, test.is_member]
    rows = [
        measured(attack, found, spec=spec, target=trained.target.spec, truth=truth, seconds=took)
        for attack, found, spec, took in tried
    ]
    return partial(
        assembled,
        rows=rows,
        held=test,
        held_index=np.arange(len(test.y)),
        parts=tuple(map(counts, truth)),  # type: ignore[arg-type]
        target=target.spec,
        accuracy=accuracy_of(signals, test.is_member),
        layers=measured_layers(signals, test, target.spec),
        seed=str(settings["seed"]),
        settings=settings,
        signal_seconds=seconds,
        signal_bytes=tree_bytes(signals),
        device=device,
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
