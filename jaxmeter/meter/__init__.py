"""ML Privacy Meter's vocabulary (2020) over this package: its files, numbers, names and figures.

A script of that tool runs after one changed line:

    from jaxmeter import meter as ml_privacy_meter

`docs/migrating.md` says what is computed differently, and why.
"""

from types import SimpleNamespace

from jaxmeter.meter.attacking import compare, initialize
from jaxmeter.meter.handlers import AttackData, attack_data
from jaxmeter.meter.optimizers import OPTIMIZERS, optimizer_of

# That tool's own paths to the same two names.
utils = SimpleNamespace(attack_data=SimpleNamespace(attack_data=attack_data, AttackData=AttackData))
attack = SimpleNamespace(
    meminf=SimpleNamespace(initialize=initialize, meminf=initialize),
    whitebox=SimpleNamespace(initialize=initialize),
)

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
