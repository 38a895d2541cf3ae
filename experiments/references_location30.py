"""Location-30: what attacks with 8, 16 and 32 reference models find.

    python experiments/references_location30.py sweep
    python experiments/references_location30.py table --metrics auc tpr_at_0.01 tpr_at_0.001

The network of `location30_layers.py` and reference models trained as it was, each on a random half
of the 3,200 audited records, on as many as the target. All attacks are measured on 1,120 members
and 1,120 non-members; they know 160 and 160 others, to set a threshold, and RMIA knows 320 more
non-members, its population. `docs/studies.md` reads the table.

Records come from location30.npz in the folder that JAXMETER_DATA names, or from `--data.path FILE`,
or are downloaded.

Cost: 37 seconds a run of 16 models on two CPU cores that did other work as well, 17 minutes for all
nine runs while they did much of it.

| attack | AUC, k = 8 | k = 32 | TPR (%) at 1% FPR, 32 | at 0.1%, 8 | at 0.1%, 32 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | .838 ± .014 | .838 ± .014 | 1.1 ± 0.6 | 0.2 ± 0.2 | 0.2 ± 0.2 |
| LiRA | .921 ± .004 | .931 ± .008 | 29.9 ± 2.1 | 7.5 ± 1.4 | 13.5 ± 2.2 |
| LiRA, gradient norm | .925 ± .005 | .936 ± .009 | 25.1 ± 6.8 | 1.5 ± 1.0 | 3.4 ± 2.1 |
| log-ratio | .879 ± .006 | .891 ± .007 | 22.2 ± 0.6 | 9.8 ± 1.5 | 10.2 ± 2.0 |
| RMIA | .875 ± .009 | .888 ± .007 | 21.0 ± 0.8 | 8.9 ± 2.3 | 9.7 ± 1.7 |
| BaVarIA | .923 ± .004 | .932 ± .008 | 29.7 ± 3.7 | 7.9 ± 5.5 | 13.9 ± 3.7 |
| LiRA offline | .852 ± .001 | .878 ± .004 | 23.8 ± 3.5 | 7.0 ± 1.0 | 13.4 ± 2.8 |
| RMIA offline | .875 ± .008 | .888 ± .007 | 21.5 ± 1.5 | 6.5 ± 2.8 | 7.2 ± 3.3 |
| difficulty calibration | .762 ± .009 | .783 ± .005 | 12.7 ± 1.5 | 3.4 ± 0.4 | 4.6 ± 1.6 |
| attack R | .847 ± .007 | .875 ± .008 | 17.8 ± 2.9 | 4.0 ± 0.3 | 9.2 ± 1.9 |
| blind baseline | .497 ± .006 | .497 ± .006 | 0.8 ± 0.3 | 0.0 ± 0.1 | 0.0 ± 0.1 |

Mean ± standard deviation over seeds; Python 3.11, jax 0.10.2, keras 3.15.1.
"""

import jaxmeter as jm
from jaxmeter import experiment

BASE = experiment.Config(
    study="references_location30",
    seed=0,
    data=experiment.Location30(),
    target=experiment.Mlp(
        widths=(512, 256, 128),
        initial=experiment.Normal(deviation=0.01),
        training=experiment.Training(epochs=60, batch_size=64),
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
    references=experiment.ShadowModels(k=32, recipe=jm.shadow.RecipeConfig(epochs=60)),
    fractions=(0.2, 0.1, 0.7),  # these attacks know no members but those that set the threshold
    overlap="drop",  # a few records occur twice, and one on both sides has no defined membership
)
AXES = {"references.k": (8, 16, 32), "seed": (0, 1, 2)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
