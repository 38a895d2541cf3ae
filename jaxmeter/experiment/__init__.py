"""Studies: typed configs, cached stages, sweeps that survive anything."""

from jaxmeter.experiment.cli.main import main
from jaxmeter.experiment.config import (
    Config,
    Pool,
    ShadowModels,
    Stranger,
    TargetFile,
    expand,
)
from jaxmeter.experiment.datasets import (
    Cifar100,
    Digits,
    FilePair,
    FileRecords,
    Location30,
    NpzPair,
    NpzRecords,
    Purchase100,
)
from jaxmeter.experiment.models import AlexNet, Cnn, Mlp, Normal, Training, Variance
from jaxmeter.experiment.runs.maintenance import gc, verify
from jaxmeter.experiment.runs.ray import OnRay
from jaxmeter.experiment.runs.run import Outcome, attempt, name_of, run, status
from jaxmeter.experiment.runs.sweep import Launcher, Summary, in_process, sweep
from jaxmeter.experiment.serialization import ConfigError, from_json, to_json
from jaxmeter.experiment.store.store import Damage, Store, StoreError, opened

__all__ = [
    "AlexNet",
    "Cifar100",
    "Cnn",
    "Config",
    "ConfigError",
    "Damage",
    "Digits",
    "FilePair",
    "FileRecords",
    "Launcher",
    "Location30",
    "Mlp",
    "Normal",
    "NpzPair",
    "NpzRecords",
    "OnRay",
    "Outcome",
    "Pool",
    "Purchase100",
    "ShadowModels",
    "Store",
    "StoreError",
    "Stranger",
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
