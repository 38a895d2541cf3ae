"""Location-30: ML Privacy Meter's fully connected network and its tutorial's configurations.

    JAXMETER_DATA=FOLDER python experiments/fcn_location30.py sweep
    JAXMETER_DATA=FOLDER python experiments/fcn_location30.py table --metrics auc tpr_at_0.01

The 446-1024-512-256-128-30 tanh network, kernels from N(0, 0.01), trained on 1,600 records:
accuracy 0.995 ± 0.003 on them, 0.474 ± 0.020 on others. Attacks know 800 members and 800
non-members and are measured on 800 and 800 others. `docs/studies.md` reads the table.

The folder has location30.npz; another file is named with `--data.path`. Without either the
published archive, dataset_location.tgz at https://github.com/privacytrustlab/datasets, is
downloaded.

Cost: 68 to 174 seconds a seed on two CPU cores that did other work as well.

| attack | runs | AUC | TPR at 1% FPR (%) | balanced accuracy (%) |
| --- | ---: | ---: | ---: | ---: |
| negative loss | 5 | 0.839 ± 0.015 | 2.4 ± 1.5 | 81.5 ± 1.3 |
| gradient norm | 5 | 0.847 ± 0.016 | 2.3 ± 1.1 | 82.3 ± 1.8 |
| black box | 5 | 0.844 ± 0.016 | 3.8 ± 2.2 | 81.5 ± 1.3 |
| last two outputs | 5 | 0.863 ± 0.012 | 7.0 ± 3.0 | 82.2 ± 1.5 |
| white box | 5 | 0.869 ± 0.010 | 6.6 ± 3.1 | 81.8 ± 0.8 |
| last three gradients | 5 | 0.890 ± 0.011 | 11.6 ± 2.1 | 84.5 ± 1.3 |
| white box + norms | 5 | 0.898 ± 0.005 | 11.2 ± 2.5 | 85.0 ± 1.5 |
| blind baseline | 5 | 0.492 ± 0.017 | 1.0 ± 0.5 | 49.9 ± 1.6 |

Mean ± standard deviation over seeds; Python 3.11, jax 0.10.2, keras 3.15.1.
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
