"""ML Privacy Meter's vocabulary (2020) over this package: its files, numbers, names and figures.

A script of that tool runs after one changed line:

    from jaxmeter import meter as ml_privacy_meter

`docs/migrating.md` says what is computed differently, and why.
"""

from jaxmeter.meter.handlers import AttackData, attack_data
from jaxmeter.meter.meminf import compare, initialize
from jaxmeter.meter.namespaces import attack, utils
from jaxmeter.meter.optimizers import OPTIMIZERS, optimizer_of

__all__ = [
    "OPTIMIZERS",
    "AttackData",
    "attack",
    "attack_data",
    "compare",
    "initialize",
    "optimizer_of",
    "utils",
]
