"""Location-30: which signal of which layer gives away how much?

    JAXMETER_DATA=FOLDER python experiments/location30_layers.py sweep
    JAXMETER_DATA=FOLDER python experiments/location30_layers.py table --metrics auc tpr_at_0.01

The 446-512-256-128-30 tanh network of `benchmarks/location30.py`, trained on 1,600 records. For
each of its four layers one attack reads its output, one its gradient, one its gradient's norm, and
the label; other attacks read several. All know 800 members and 800 non-members and are measured on
800 and 800 others. `docs/studies.md` reads the table.

The folder has `location30.npz`; another file is named with `--data.path`. Without either the
published archive, dataset_location.tgz at https://github.com/privacytrustlab/datasets, is
downloaded.

Cost: 15 minutes for three seeds on two CPU cores that did other work as well; 3 minutes for the
quickest seed. Attacks are ensembles of 5 networks instead of 10.

| attack | runs | AUC | TPR at 1% FPR (%) |
| --- | ---: | ---: | ---: |
| negative loss | 3 | 0.838 ± 0.014 | 1.5 ± 1.5 |
| gradient norm | 3 | 0.838 ± 0.011 | 1.4 ± 1.5 |
| output hidden_1 | 3 | 0.504 ± 0.011 | 1.2 ± 0.3 |
| output hidden_2 | 3 | 0.608 ± 0.013 | 2.1 ± 1.6 |
| output hidden_3 | 3 | 0.756 ± 0.017 | 4.5 ± 1.0 |
| output logits | 3 | 0.887 ± 0.002 | 8.3 ± 0.6 |
| gradient hidden_1 | 3 | 0.907 ± 0.010 | 6.8 ± 2.9 |
| gradient hidden_2 | 3 | 0.911 ± 0.005 | 12.0 ± 1.4 |
| gradient hidden_3 | 3 | 0.909 ± 0.004 | 13.6 ± 2.2 |
| gradient out | 3 | 0.902 ± 0.007 | 13.1 ± 1.0 |
| norm hidden_1 | 3 | 0.913 ± 0.006 | 12.5 ± 2.4 |
| norm hidden_2 | 3 | 0.908 ± 0.004 | 7.1 ± 1.9 |
| norm hidden_3 | 3 | 0.899 ± 0.005 | 7.3 ± 1.1 |
| norm out | 3 | 0.886 ± 0.007 | 6.9 ± 2.9 |
| all outputs | 3 | 0.900 ± 0.004 | 13.4 ± 1.1 |
| all gradients | 3 | 0.912 ± 0.005 | 14.4 ± 0.3 |
| all norms | 3 | 0.917 ± 0.005 | 11.4 ± 1.4 |
| black box | 3 | 0.891 ± 0.003 | 10.0 ± 0.3 |
| white box | 3 | 0.902 ± 0.003 | 14.9 ± 0.2 |
| white box + norms | 3 | 0.919 ± 0.005 | 16.6 ± 2.3 |
| everything | 3 | 0.916 ± 0.007 | 14.9 ± 1.8 |
| blind baseline | 3 | 0.495 ± 0.022 | 0.8 ± 0.5 |

Mean ± standard deviation over seeds; Python 3.11, jax 0.10.2, keras 3.15.1.
"""

from typing import Any

import jaxmeter as jm
from jaxmeter import experiment

LAYERS = ("hidden_1", "hidden_2", "hidden_3", "out")
OUTPUTS = ("hidden_1", "hidden_2", "hidden_3", "logits")  # of the last layer before the softmax
FIT = jm.FitConfig(members=5)  # half the usual ensemble: there are 19 fits a run


def reading(name: str, **signals: Any) -> jm.Learned:
    """A learned attack that reads these signals and the label, nothing else."""
    spec = jm.SignalSpec(**{"outputs": (), "loss": False, **signals})
    return jm.Learned(spec, name=name, config=FIT)


BASE = experiment.Config(
    study="location30_layers",
    seed=0,
    data=experiment.Location30(),
    target=experiment.Mlp(
        widths=(512, 256, 128),
        initial=experiment.Normal(deviation=0.01),
        training=experiment.Training(epochs=60, batch_size=64),
    ),
    attacks=(
        jm.NegativeLoss(),
        jm.GradientNorm(),
        *(reading(f"output {layer}", outputs=(layer,)) for layer in OUTPUTS),
        *(reading(f"gradient {layer}", gradients=(layer,)) for layer in LAYERS),
        *(reading(f"norm {layer}", gradient_norm=(layer,)) for layer in LAYERS),
        reading("all outputs", outputs=OUTPUTS),
        reading("all gradients", gradients=LAYERS),
        reading("all norms", gradient_norm=True),
        reading("black box", outputs=("logits",), loss=True),
        reading("white box", outputs=("logits",), gradients=("out",), loss=True),
        reading(
            "white box + norms",
            outputs=("logits",),
            gradients=("out",),
            gradient_norm=True,
            loss=True,
        ),
        reading("everything", outputs=OUTPUTS, gradients=LAYERS, gradient_norm=True, loss=True),
        jm.Blind(),
    ),
    overlap="drop",  # a few records occur twice, and one on both sides has no defined membership
)
AXES = {"seed": (0, 1, 2)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
