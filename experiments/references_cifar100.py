"""placeholder"""

import jaxmeter as jm
from jaxmeter import experiment

BASE = experiment.Config(
    study="references_cifar100",
    seed=0,
    data=experiment.Cifar100(members=2500, nonmembers=2500),
    target=experiment.Cnn(
        filters=(32, 64),
        pooling=2,
        widths=(128,),
        activation="relu",
        training=experiment.Training(epochs=30, batch_size=64),
    ),
    attacks=(
        jm.NegativeLoss(),
        jm.Lira(),
        jm.LogRatio(),
        jm.Rmia(),
        jm.Bavaria(),
        jm.LiraOffline(),
        jm.DifficultyCalibration(),
        jm.AttackR(),
        jm.Blind(),
    ),
    references=experiment.ShadowModels(k=16, recipe=jm.shadow.RecipeConfig(epochs=30)),
    fractions=(0.2, 0.1, 0.7),  # these attacks know no members but those that set the threshold
    overlap="drop",  # some images occur twice, and one on both sides has no defined membership
)
AXES = {"seed": (0, 1, 2)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
