"""ML Privacy Meter's own paths to the names of this package."""

from types import SimpleNamespace

from jaxmeter.meter.handlers import AttackData, attack_data
from jaxmeter.meter.meminf import initialize

# That tool's own paths to the same two names.
utils = SimpleNamespace(attack_data=SimpleNamespace(attack_data=attack_data, AttackData=AttackData))
attack = SimpleNamespace(
    meminf=SimpleNamespace(initialize=initialize, meminf=initialize),
    whitebox=SimpleNamespace(initialize=initialize),
)
