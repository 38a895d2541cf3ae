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

Cost: 8 to 11 minutes a seed on two CPU cores that did other work as well, 8 of them for the
reference models.

| attack | AUC | TPR at 1% FPR (%) | TPR at 0.1% FPR (%) | balanced accuracy (%) |
| --- | ---: | ---: | ---: | ---: |
| negative loss | 0.981 | 42.1 | 1.1 | 94.9 |
| LiRA | 0.993 | 89.7 | 49.5 | 96.8 |
| log-ratio | 0.990 | 81.4 | 50.4 | 93.6 |
| RMIA | 0.990 | 77.1 | 46.4 | 93.8 |
| BaVarIA | 0.994 | 88.1 | 55.6 | 96.2 |
| LiRA offline | 0.981 | 76.2 | 47.0 | 93.0 |
| difficulty calibration | 0.903 | 32.8 | 11.7 | 81.7 |
| attack R | 0.984 | 87.7 | 30.1 | 94.7 |
| blind baseline | 0.498 | 0.3 | 0.0 | 49.7 |

Seed 0 alone of the three; Python 3.11, jax 0.10.2, keras 3.15.1.
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
