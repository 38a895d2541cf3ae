"""jaxmeter measures how much a trained classifier gives away about its training data."""

from jaxmeter import directions, logits, meter, metrics, reference, scores, shadow, signals
from jaxmeter.attack import Attack, Fitted, cross_fit, fit, inference_model
from jaxmeter.auditing import audit
from jaxmeter.calibrated import (
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
from jaxmeter.calibrated_inference import (
    CalibratedInference,
    CalibratedInferenceOffline,
    CalibratedInferenceSupervised,
)
from jaxmeter.catalogue import (
    TRAINING_FREE,
    WITH_REFERENCES,
    Blind,
    ClassWise,
    Confidence,
    Entropy,
    FitConfig,
    GradientNorm,
    Learned,
    LogitMargin,
    ModifiedEntropy,
    NegativeLoss,
)
from jaxmeter.data import Records, split
from jaxmeter.gradients import Outer, gradient_norms, per_example_gradients
from jaxmeter.intake import load_target
from jaxmeter.layer_ranking import layer_map
from jaxmeter.layer_results import LayerMap
from jaxmeter.metrics import AttackResult, evaluate
from jaxmeter.privacy_meter_text import read_privacy_meter, write_privacy_meter
from jaxmeter.referenced import References, Shadows
from jaxmeter.released import released_model
from jaxmeter.signals import Signals, SignalSpec, extract, of_example
from jaxmeter.target import Outputs, Target, from_flax, from_function

__all__ = [
    "TRAINING_FREE",
    "WITH_REFERENCES",
    "Attack",
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
    "reference",
    "released_model",
    "scores",
    "shadow",
    "signals",
    "split",
    "write_privacy_meter",
]
