"""Location-30: ML Privacy Meter's fully connected network and its tutorial's configurations.

    JAXMETER_DATA=FOLDER python experiments/fcn_location30.py sweep
    JAXMETER_DATA=FOLDER python experiments/fcn_location30.py table --metrics auc tpr_at_0.01

The 446-1024-512-256-128-30 tanh network, kernels from N(0, 0.01), trained on 1,600 records:
accuracy 0.998 on them, 0.500 on others. Attacks know 800 members and 800 non-members and are
measured on 800 and 800 others. `docs/studies.md` reads the table.

The folder has location30.npz; another file is named with `--data.path`. Without either the
published archive, dataset_location.tgz at https://github.com/privacytrustlab/datasets, is
downloaded.

Cost: 116 seconds a seed on two CPU cores that did other work as well. One of the five seeds is
measured.

| attack | runs | AUC | TPR at 1% FPR (%) | balanced accuracy (%) |
| --- | ---: | ---: | ---: | ---: |
| negative loss | 1 | 0.823 | 1.1 | 80.8 |
| gradient norm | 1 | 0.828 | 1.1 | 81.9 |
| black box | 1 | 0.823 | 1.1 | 80.8 |
| last two outputs | 1 | 0.865 | 11.9 | 80.6 |
| white box | 1 | 0.871 | 10.9 | 81.1 |
| last three gradients | 1 | 0.876 | 10.1 | 83.0 |
| white box + norms | 1 | 0.895 | 13.0 | 84.9 |
| blind baseline | 1 | 0.489 | 0.4 | 49.5 |

One seed; Python 3.11, jax 0.10.2, keras 3.15.1.
"""

import jaxmeter as jm
from jaxmeter import experiment

BASE = experiment.Config(
    study="fcn_location30",
    seed=0,
    data=experiment.Location30(),
    target=experiment.Mlp(
        widths=(1024, 512, 256, 128),
        initial=experiment.Normal(deviation=0.01),
        training=experiment.Training(epochs=60, batch_size=64),
    ),
    attacks=(
        jm.NegativeLoss(),
        jm.GradientNorm(),
        jm.Learned(jm.SignalSpec(loss=False), name="black box"),
        jm.Learned(jm.SignalSpec(outputs=("hidden_4", "logits")), name="last two outputs"),
        jm.Learned(name="white box"),
        jm.Learned(
            jm.SignalSpec(gradients=("hidden_3", "hidden_4", "out")), name="last three gradients"
        ),
        jm.Learned(jm.SignalSpec(gradients=("out",), gradient_norm=True), name="white box + norms"),
        jm.Blind(),
    ),
    overlap="drop",  # a few records occur twice, and one on both sides has no defined membership
)
AXES = {"seed": (0, 1, 2, 3, 4)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
