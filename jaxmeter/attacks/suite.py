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
    Rmia,
    RmiaOffline,
)
from jaxmeter.attacks.interface import ACCESS, AttackConfig, AttackOutput, Evidence
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
from jaxmeter.prng import stream
from jaxmeter.signals.spec import ResolvedSpec, SignalSpec
from jaxmeter.target import LOGITS, Target

WITH_REFERENCES = (Lira(), LogRatio(), Rmia(), Bavaria(), LiraOffline(), CalibratedInference())

# Those of this package, which a study's command line knows by name.
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


_MEMBERS = ("name", "access", "fits", "needs_references", "needs_population", "reads", "run")


# --- The steps of an audit that one attack at a time takes ----------------------------------------


def check_attacks(attacks: Sequence[AttackConfig]) -> None:
    """Refuses what is no attack, and attacks that a report could not tell apart."""
    for attack in attacks:
        lacks = [name for name in _MEMBERS if not hasattr(attack, name)]
        if lacks or isinstance(attack, type):
            made = " It is a class: make one of it, with ()." if isinstance(attack, type) else ""
            raise TypeError(
                f"{attack!r} is no attack: it lacks {', '.join(lacks) or 'its settings'}.{made} "
                "See jaxmeter.AttackConfig."
            )
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks are named {names}; give at least one, and each its own name.")


_REMEDY = (
    "Pass references=jaxmeter.Shadows(architecture=...) to train some on the audited records "
    "(--references 32), or references=jaxmeter.References(...)."
)


def check_references(
    attacks: Sequence[AttackConfig], *, given: bool, remedy: str = _REMEDY
) -> None:
    """Refuses attacks that lack reference models, and models that no attack asks for.

    `remedy` says how some are given.
    """
    needing = [attack.name for attack in needing_references(attacks)]
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


def spec_of(attack: AttackConfig, target: Target) -> ResolvedSpec | None:
    """The signals an attack reads, in the target's names; only `target.spec` is looked at.

    Raises:
      ValueError: if the target does not have them, or the attack declares less access than they
        take: its row would say that it needs less than it does.
    """
    spec = attack.reads(target)
    resolved = None if spec is None else spec.resolved(target)
    if attack.access not in ACCESS:
        raise ValueError(
            f"{attack.name} has the access {attack.access!r}; it is one of {', '.join(ACCESS)}."
        )
    declared, needed = ACCESS.index(attack.access), 0
    if resolved is not None:
        inner = set(resolved.outputs) - {LOGITS, *target.spec.layers[-1:]}
        inside = bool(inner or resolved.gradients or resolved.norms or resolved.scalars)
        needed = ACCESS.index("white box") if inside else ACCESS.index("labels")
    if spec is None and attack.needs_references:
        raise ValueError(
            f"{attack.name} needs reference models and reads no signal of them; let reads() give a "
            "jaxmeter.SignalSpec."
        )
    if declared < needed:
        raise ValueError(
            f"{attack.name} declares the access {attack.access!r} and reads {resolved}, which "
            f"takes {ACCESS[needed]!r} or more. Declare that."
        )
    return resolved


def needing_references(attacks: Sequence[AttackConfig]) -> list[AttackConfig]:
    """Those of the attacks that compare the target with reference models."""
    return [attack for attack in attacks if attack.needs_references]


def asked_of_references(attacks: Sequence[AttackConfig], target: Target) -> tuple[SignalSpec, ...]:
    """What attacks read of reference models, each once, in an order that is not the attacks'."""
    reads = (attack.reads(target) for attack in needing_references(attacks))
    return tuple(sorted({spec for spec in reads if spec is not None}, key=repr))


def union_of_specs(reads: Sequence[ResolvedSpec | None], target: Target) -> ResolvedSpec:
    """What to extract once for attacks that read these, and for the target's accuracy."""
    wanted = SignalSpec().resolved(target)
    for spec in reads:
        wanted = wanted.union(spec) if spec else wanted
    return wanted


def run_attack(
    key: jax.Array,
    attack: AttackConfig,
    spec: ResolvedSpec | None,
    fit: Evidence,
    select: Evidence,
    held: Evidence,
) -> AttackOutput:
    """What an attack finds, given no more of the signals than it reads."""
    mine = (p._replace(signals=p.signals.only(spec)) if spec else p for p in (fit, select, held))
    if not attack.needs_references:
        mine = (part._replace(references=None) for part in mine)
    return attack.run(stream(key, f"attack: {attack.name}"), *mine)
