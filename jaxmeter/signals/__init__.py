"""What the attacker computes from a target and its records, once, for all attacks."""

from jaxmeter.signals.example import of_example
from jaxmeter.signals.extraction import check_records, context_of, extract
from jaxmeter.signals.planning import DEVICE_BUDGET, Plan, plan
from jaxmeter.signals.scalars.names import SCALARS, Scalar, is_of
from jaxmeter.signals.scalars.values import Context
from jaxmeter.signals.spec import AnySpec, ResolvedSpec, Signals, SignalSpec, white_box
from jaxmeter.signals.storage import load

__all__ = [
    "DEVICE_BUDGET",
    "SCALARS",
    "AnySpec",
    "Context",
    "Plan",
    "ResolvedSpec",
    "Scalar",
    "SignalSpec",
    "Signals",
    "check_records",
    "context_of",
    "extract",
    "is_of",
    "load",
    "of_example",
    "plan",
    "white_box",
]
