"""The attacks of an audit: which there are, and what they read together."""

from collections.abc import Sequence

import jax

from jaxmeter.attacks.baselines import Blind, ClassWise
from jaxmeter.attacks.calibrated import (
    AttackR,
    Bavaria,
    DifficultyCalibration,
    Lira,
    LiraOffline,
    LogRatio,
    LogRatioOffline,
    OfOneStatistic,
    Rmia,
    RmiaOffline,
)
from jaxmeter.attacks.interface import AttackOutput, Evidence
from jaxmeter.attacks.learned import Learned
from jaxmeter.attacks.training_free import (
    Confidence,
    Entropy,
    GradientNorm,
    LogitMargin,
    ModifiedEntropy,
    NegativeLoss,
)
from jaxmeter.attacks.white_box import (
    CalibratedInference,
    CalibratedInferenceOffline,
    CalibratedInferenceSupervised,
)
from jaxmeter.attacks.with_references import NeedsReferences
from jaxmeter.prng import stream
from jaxmeter.signals.spec import ResolvedSpec, SignalSpec
from jaxmeter.target import Target

WITH_REFERENCES = (Lira(), LogRatio(), Rmia(), Bavaria(), LiraOffline(), CalibratedInference())

AnyAttack = (
    NegativeLoss
    | Confidence
    | Entropy
    | ModifiedEntropy
    | LogitMargin
    | GradientNorm
    | ClassWise
    | Blind
    | Learned
    | Lira
    | LiraOffline
    | LogRatio
    | LogRatioOffline
    | Rmia
    | RmiaOffline
    | Bavaria
    | AttackR
    | DifficultyCalibration
    | CalibratedInference
    | CalibratedInferenceOffline
    | CalibratedInferenceSupervised
)


# --- The steps of an audit that one attack at a time takes ----------------------------------------


def check_names(attacks: Sequence[AnyAttack]) -> None:
    """Refuses a list of attacks that a report could not tell apart."""
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks are named {names}; give at least one, and each its own name.")


_REMEDY = (
    "Pass references=jaxmeter.Shadows(architecture=...) to train some on the audited records "
    "(--references 32), or references=jaxmeter.References(...)."
)


def check_references(attacks: Sequence[AnyAttack], *, given: bool, remedy: str = _REMEDY) -> None:
    """Refuses attacks that lack reference models, and models that no attack asks for.

    `remedy` says how some are given.
    """
    needing = [attack.name for attack in calibrated(attacks)]
    if needing and not given:
        raise ValueError(
            f"{', '.join(needing)}: compared with reference models, of which there are none. "
            f"{remedy}"
        )
    if given and not needing:
        raise ValueError(
            "references= is given, but none of the attacks reads reference models; add "
            "jaxmeter.Lira() or another of jaxmeter.WITH_REFERENCES, or leave references out."
        )


def spec_of(attack: AnyAttack, target: Target) -> ResolvedSpec | None:
    """The signals an attack reads, in the target's names; only `target.spec` is looked at."""
    spec = attack.reads(target)
    return None if spec is None else spec.resolved(target)


def calibrated(attacks: Sequence[AnyAttack]) -> list[OfOneStatistic | CalibratedInference]:
    """Those of the attacks that need reference models."""
    return [
        attack for attack in attacks if isinstance(attack, OfOneStatistic | CalibratedInference)
    ]


def union_of_specs(reads: Sequence[ResolvedSpec | None], target: Target) -> ResolvedSpec:
    """What to extract once for attacks that read these, and for the target's accuracy."""
    wanted = SignalSpec().resolved(target)
    for spec in reads:
        wanted = wanted.union(spec) if spec else wanted
    return wanted


def run_attack(
    key: jax.Array,
    attack: AnyAttack,
    spec: ResolvedSpec | None,
    fit: Evidence,
    select: Evidence,
    held: Evidence,
) -> AttackOutput:
    """What an attack finds, given no more of the signals than it reads."""
    mine = (p._replace(signals=p.signals.only(spec)) if spec else p for p in (fit, select, held))
    if not isinstance(attack, NeedsReferences):
        mine = (part._replace(references=None) for part in mine)
    return attack.run(stream(key, f"attack: {attack.name}"), *mine)
