"""From what an attack found to a row of the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from jaxmeter.metrics import best_threshold, evaluate
from jaxmeter.report.result import Budget, Row
from jaxmeter.target import LOGITS, TargetSpec, layer_of, resolve_variables

if TYPE_CHECKING:  # Only for annotations: measuring does not depend on how attacks work.
    from jaxmeter.attacks.interface import AttackConfig, AttackOutput
    from jaxmeter.signals.spec import ResolvedSpec


def measured(
    attack: "AttackConfig",
    found: "AttackOutput",
    *,
    spec: "ResolvedSpec | None",
    target: TargetSpec,
    truth: Sequence[NDArray],
    seconds: float,
    models: int = 0,
) -> Row:
    """An attack's row: every figure on the held-out part, the threshold from the select part.

    Where the select part is empty, the accuracy is by two folds of the held-out part.

    `spec` is what it read, `truth` the membership of the records of the fit, select and held-out
    part, `models` how many reference models it had.
    """
    fit, select, held = truth
    known = [counts(part) for part in ([fit, select] if attack.fits else [select])]
    if attack.needs_population:
        known.append((0, counts(fit)[1]))
    threshold = best_threshold(found.select, select) if len(select) else None
    return Row(
        name=attack.name,
        result=evaluate(found.held, held, threshold=threshold),
        budget=Budget(
            known_members=sum(members for members, _ in known),
            known_nonmembers=sum(others for _, others in known),
            models_trained=models,
            queries=int(spec is not None),
            reads=_reads(spec),
            parameters=_parameters(target, spec) if spec else (),
            layers=_inner(target, spec) if spec else (),
        ),
        seconds=seconds,
        history=found.history,
        best_epoch=found.best_epoch,
        spread=found.spread,
        minus=found.minus,
    )


def declined(rows: Sequence[Row]) -> list[str]:
    """A note for every learned attack that stayed what it was initialised as."""
    return [
        f"{row.name}: nothing significantly better than the loss threshold was found on "
        f"{row.budget.known_members}+{row.budget.known_nonmembers} records of known membership, so "
        "its scores are the loss threshold's."
        for row in rows
        if row.best_epoch == 0
    ]


def counts(is_member: NDArray) -> tuple[int, int]:
    """Members and non-members."""
    members = int(is_member.sum())
    return members, len(is_member) - members


def _reads(spec: "ResolvedSpec | None") -> tuple[str, ...]:
    if spec is None:
        return ("x", "y")
    layers = tuple(dict.fromkeys(layer_of(name) for name in spec.gradients))
    return (
        *spec.outputs,
        *([f"gradients of {_listed(layers)}"] if layers else []),
        *([f"gradient norms of {_listed(spec.norms)}"] if spec.norms else []),
        *spec.scalars,
        *(["loss"] if spec.loss else []),
        *(["label"] if spec.label else []),
    )


def _parameters(target: TargetSpec, spec: "ResolvedSpec") -> tuple[str, ...]:
    """The variables whose values the attack needs."""
    normed = resolve_variables(target, spec.norms)
    named = target.variables if spec.scalars else ()  # any of them reads gradients or inner outputs
    return tuple(dict.fromkeys((*spec.gradients, *normed, *named)))


def _inner(target: TargetSpec, spec: "ResolvedSpec") -> tuple[str, ...]:
    """The layers whose outputs the attack needs to see, but the last one's, which is the answer."""
    return tuple(name for name in spec.outputs if name not in (LOGITS, *target.layers[-1:]))


def _listed(layers: tuple[str, ...]) -> str:
    return " and ".join(layers) if len(layers) <= 2 else f"{len(layers)} layers"
