"""Studies: typed configs, cached stages, sweeps that survive anything."""

from jaxmeter.experiment.canonical import ConfigError, from_json, to_json
from jaxmeter.experiment.commandline import main
from jaxmeter.experiment.configs import Config, ShadowModels, TargetFile, expand
from jaxmeter.experiment.datasets import (
    Cifar100,
    Digits,
    Location30,
    NpzPair,
    NpzRecords,
    Purchase100,
)
from jaxmeter.experiment.launch import Launcher, in_process
from jaxmeter.experiment.on_ray import OnRay
from jaxmeter.experiment.recipes import AlexNet, Cnn, Mlp, Normal, Training, Variance
from jaxmeter.experiment.runs import Outcome, attempt, name_of, run, status
from jaxmeter.experiment.store import Damage, Store, StoreError, opened
from jaxmeter.experiment.sweeping import Summary, sweep
from jaxmeter.experiment.upkeep import gc, verify

__all__ = [
    "AlexNet",
    "Cifar100",
    "Cnn",
    "Config",
    "ConfigError",
    "Damage",
    "Digits",
    "Launcher",
    "Location30",
    "Mlp",
    "Normal",
    "NpzPair",
    "NpzRecords",
    "OnRay",
    "Outcome",
    "Purchase100",
    "ShadowModels",
    "Store",
    "StoreError",
    "Summary",
    "TargetFile",
    "Training",
    "Variance",
    "attempt",
    "expand",
    "from_json",
    "gc",
    "in_process",
    "main",
    "name_of",
    "opened",
    "run",
    "status",
    "sweep",
    "to_json",
    "verify",
]
