"""AlexNet on CIFAR-100: attacks with 16 reference models, at a size for two CPU cores.

    python experiments/references_cifar100.py sweep
    python experiments/references_cifar100.py table --metrics auc tpr_at_0.01 tpr_at_0.001 accuracy

The tutorial's network without its dropout, trained on 1,500 images; 16 reference models trained
alike, each on a random half of the 3,000 audited images, on as many as the target. All attacks are
measured on 1,050 members and 1,050 non-members; they know 150 and 150 others, to set a threshold,
and RMIA knows 300 more non-members, its population. At the size of the papers:
`--data.members 25000 --data.nonmembers 25000 --references.k 256`, on a GPU. `docs/studies.md` has
the published numbers.

Images come from `keras.datasets.cifar100`, from cifar100.npz in the folder that JAXMETER_DATA
names, or from `--data.path FILE`.

@COST@

@TABLE@
"""

import jaxmeter as jm
from jaxmeter import experiment

BASE = experiment.Config(
    study="references_cifar100",
    seed=0,
    data=experiment.Cifar100(members=1500, nonmembers=1500),
    target=experiment.AlexNet(
        dropout=0.0,
        training=experiment.Training(epochs=30, batch_size=64, learning_rate=5e-4),
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
    references=experiment.ShadowModels(
        k=16, recipe=jm.shadow.RecipeConfig(epochs=30, learning_rate=5e-4)
    ),
    fractions=(0.2, 0.1, 0.7),  # these attacks know no members but those that set the threshold
    overlap="drop",  # some images occur twice, and one on both sides has no defined membership
)
AXES = {"seed": (0, 1, 2)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
