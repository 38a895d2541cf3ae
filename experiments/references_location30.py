"""placeholder"""

import jaxmeter as jm
from jaxmeter import experiment

TRAINING = {"epochs": 60, "batch_size": 64}
BASE = experiment.Config(
    study="references_location30",
    seed=0,
    data=experiment.Location30(),
    target=experiment.Mlp(
        widths=(512, 256, 128),
        initial=experiment.Normal(deviation=0.01),
        training=experiment.Training(**TRAINING),
    ),
    attacks=(
        jm.NegativeLoss(),
        jm.Lira(),
        jm.Lira(statistic="gradient norm"),
        jm.LogRatio(),
        jm.Rmia(),
        jm.Bavaria(),
        jm.LiraOffline(),
        jm.RmiaOffline(),
        jm.DifficultyCalibration(),
        jm.AttackR(),
        jm.Blind(),
    ),
    references=experiment.ShadowModels(k=32, recipe=jm.shadow.RecipeConfig(**TRAINING)),
    fractions=(0.2, 0.1, 0.7),  # these attacks know no members but those that set the threshold
    overlap="drop",  # a few records occur twice, and one on both sides has no defined membership
)
AXES = {"references.k": (8, 16, 32), "seed": (0, 1, 2)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
