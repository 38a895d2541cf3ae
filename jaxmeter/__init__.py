"""jaxmeter measures how much a trained classifier gives away about its training data."""

from jaxmeter import logits, meter, metrics, reference, scores, shadow, signals
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
from jaxmeter.attacks.interface import AttackConfig, AttackOutput, Evidence
from jaxmeter.attacks.learned import FitConfig, Learned
from jaxmeter.attacks.suite import WITH_REFERENCES
from jaxmeter.attacks.training_free import (
    TRAINING_FREE,
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
from jaxmeter.auditing.audit import audit
from jaxmeter.auditing.layer_map import layer_map
from jaxmeter.auditing.references import References, Shadows
from jaxmeter.data.privacy_meter import read_privacy_meter, write_privacy_meter
from jaxmeter.data.readers import read_records
from jaxmeter.data.records import Records
from jaxmeter.data.splits import split
from jaxmeter.gradients import directions
from jaxmeter.gradients.factors import Outer
from jaxmeter.gradients.per_example import gradient_norms, per_example_gradients
from jaxmeter.inference.attack import Attack, Fitted, cross_fit, fit, inference_model
from jaxmeter.inference.released import released_model
from jaxmeter.intake.loading import load_target
from jaxmeter.metrics import AttackResult, evaluate
from jaxmeter.report.layer_map import LayerMap
from jaxmeter.signals.example import of_example
from jaxmeter.signals.extraction import extract
from jaxmeter.signals.spec import Signals, SignalSpec
from jaxmeter.target import Outputs, Target, from_flax, from_function

__all__ = [
    "TRAINING_FREE",
    "WITH_REFERENCES",
    "Attack",
    "AttackConfig",
    "AttackOutput",
    "AttackR",
    "AttackResult",
    "Bavaria",
    "Blind",
    "CalibratedInference",
    "CalibratedInferenceOffline",
    "CalibratedInferenceSupervised",
    "ClassWise",
    "Confidence",
    "DifficultyCalibration",
    "Entropy",
    "Evidence",
    "FitConfig",
    "Fitted",
    "GradientNorm",
    "LayerMap",
    "Learned",
    "Lira",
    "LiraOffline",
    "LogRatio",
    "LogRatioOffline",
    "LogitMargin",
    "ModifiedEntropy",
    "NegativeLoss",
    "Outer",
    "Outputs",
    "Records",
    "References",
    "Rmia",
    "RmiaOffline",
    "Shadows",
    "SignalSpec",
    "Signals",
    "Target",
    "audit",
    "cross_fit",
    "directions",
    "evaluate",
    "extract",
    "fit",
    "from_flax",
    "from_function",
    "gradient_norms",
    "inference_model",
    "layer_map",
    "load_target",
    "logits",
    "meter",
    "metrics",
    "of_example",
    "per_example_gradients",
    "read_privacy_meter",
    "read_records",
    "reference",
    "released_model",
    "scores",
    "shadow",
    "signals",
    "split",
    "write_privacy_meter",
]
