"""What the attacker computes from a target and its records, once, for all attacks."""

from jaxmeter.signals.example import (
    AnySpec,
    ResolvedSpec,
    Signals,
    SignalSpec,
    of_example,
    white_box,
)
from jaxmeter.signals.extraction import check_records, extract
from jaxmeter.signals.planning import DEVICE_BUDGET, Plan, plan
from jaxmeter.signals.storage import load

__all__ = [
    "DEVICE_BUDGET",
    "AnySpec",
    "Plan",
    "ResolvedSpec",
    "SignalSpec",
    "Signals",
    "check_records",
    "extract",
    "load",
    "of_example",
    "plan",
    "white_box",
]
