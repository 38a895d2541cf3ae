"""Reference (shadow) models: many models of one kind, trained as one JAX program.

The attacker trains models like the target, each on records of which it knows which went in, and
compares what they say with what the target says. `train` gives them as one stacked `Target`;
`extract` gives their signals.
"""

from jaxmeter.progress import Progress, bar
from jaxmeter.shadow.architecture import Architecture, of_file, of_flax, of_functions, of_keras
from jaxmeter.shadow.extraction import extract, load
from jaxmeter.shadow.membership import balanced_membership
from jaxmeter.shadow.recipe import Recipe, RecipeConfig
from jaxmeter.shadow.stacked import count, finite, model, stack
from jaxmeter.shadow.training import Trained, train, train_all
from jaxmeter.shadow.views import MirrorAndShift, View, views

__all__ = [
    "Architecture",
    "MirrorAndShift",
    "Progress",
    "Recipe",
    "RecipeConfig",
    "Trained",
    "View",
    "balanced_membership",
    "bar",
    "count",
    "extract",
    "finite",
    "load",
    "model",
    "of_file",
    "of_flax",
    "of_functions",
    "of_keras",
    "stack",
    "train",
    "train_all",
    "views",
]
