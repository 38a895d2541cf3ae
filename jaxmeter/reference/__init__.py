"""Attacks calibrated by reference models: functions of arrays, one score a record, higher = member.

The target's signal of n records is `observed`, `[n]` or, for several queries (or signals),
`[q, n]`; the same of k reference models is `references`, `[k, n]` or `[k, q, n]`, and
`was_member[k, n]` says which model was trained on which record. Signals come from logits by
`jaxmeter.logits`. See docs/reference_attacks.md for what each score needs and where it departs from
its paper.
"""

from jaxmeter.reference.attack_r import attack_r
from jaxmeter.reference.bavaria import bavaria, bavaria_offline
from jaxmeter.reference.calibration import (
    OFFLINE,
    ONLINE,
    calibrate,
    calibrate_left_out,
    count_leak,
    separation,
)
from jaxmeter.reference.difficulty import difficulty_calibration
from jaxmeter.reference.inputs import ReferenceWarning
from jaxmeter.reference.leave_one_out import choose_a, complementary_pairs, leave_out
from jaxmeter.reference.lira import lira, lira_joint, lira_offline, lira_offline_two_sided
from jaxmeter.reference.networks import NetworkConfig
from jaxmeter.reference.quantile import quantile_gaussian, quantile_pinball
from jaxmeter.reference.rmia import (
    Population,
    base_offline,
    log_ratio,
    log_ratio_offline,
    rmia,
    rmia_offline,
)
from jaxmeter.reference.shokri import shokri, trajectory
from jaxmeter.reference.white_box import CONFIG, Calibrated, calibrated_inference, learn, supervised

__all__ = [
    "CONFIG",
    "OFFLINE",
    "ONLINE",
    "Calibrated",
    "NetworkConfig",
    "Population",
    "ReferenceWarning",
    "attack_r",
    "base_offline",
    "bavaria",
    "bavaria_offline",
    "calibrate",
    "calibrate_left_out",
    "calibrated_inference",
    "choose_a",
    "complementary_pairs",
    "count_leak",
    "difficulty_calibration",
    "learn",
    "leave_out",
    "lira",
    "lira_joint",
    "lira_offline",
    "lira_offline_two_sided",
    "log_ratio",
    "log_ratio_offline",
    "quantile_gaussian",
    "quantile_pinball",
    "separation",
    "rmia",
    "rmia_offline",
    "shokri",
    "supervised",
    "trajectory",
]
