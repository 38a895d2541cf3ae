"""AlexNet on CIFAR-100: which signal of which layer gives away how much?

    python experiments/alexnet_cifar100_layers.py sweep
    python experiments/alexnet_cifar100_layers.py table --metrics auc tpr_at_0.01 accuracy

The targets of `alexnet_cifar100.py`, which one store trains once for both. For each of the six
layers one attack reads its output, one its gradient, one its gradient's norm, and the label. The
kernels of convolutions have up to 885,000 numbers, whose gradients for all records would take 150
GB; of convolutions the bias' gradient is read instead, the same back-propagated error summed over
positions, and the norm is that of kernel and bias together. `docs/studies.md` reads the table.

Cost: 7 minutes a seed on two CPU cores that did other work as well, without the targets. Attacks
are ensembles of 5 networks instead of 10. One of the five seeds is measured.

| attack | runs | AUC | TPR at 1% FPR (%) | balanced accuracy (%) |
| --- | ---: | ---: | ---: | ---: |
| negative loss | 1 | 0.943 | 5.2 | 92.0 |
| output conv_1 | 1 | 0.496 | 1.1 | 50.7 |
| output conv_2 | 1 | 0.499 | 1.1 | 49.7 |
| output conv_3 | 1 | 0.524 | 1.2 | 51.5 |
| output conv_4 | 1 | 0.627 | 3.2 | 59.3 |
| output conv_5 | 1 | 0.701 | 5.3 | 64.6 |
| output logits | 1 | 0.968 | 32.8 | 93.5 |
| gradient conv_1 | 1 | 0.952 | 12.9 | 92.4 |
| gradient conv_2 | 1 | 0.952 | 10.9 | 92.3 |
| gradient conv_3 | 1 | 0.956 | 18.3 | 92.2 |
| gradient conv_4 | 1 | 0.953 | 16.4 | 92.3 |
| gradient conv_5 | 1 | 0.954 | 15.0 | 92.1 |
| gradient out | 1 | 0.975 | 44.8 | 93.8 |
| norm conv_1 | 1 | 0.954 | 11.8 | 92.8 |
| norm conv_2 | 1 | 0.954 | 10.9 | 92.9 |
| norm conv_3 | 1 | 0.954 | 10.5 | 92.9 |
| norm conv_4 | 1 | 0.953 | 12.8 | 92.7 |
| norm conv_5 | 1 | 0.953 | 12.9 | 92.7 |
| norm out | 1 | 0.953 | 13.4 | 92.4 |
| all norms | 1 | 0.966 | 26.5 | 93.2 |
| blind baseline | 1 | 0.499 | 0.7 | 49.8 |

One seed; Python 3.11, jax 0.10.2, keras 3.15.1.
"""

from dataclasses import replace
from typing import Any

import alexnet_cifar100

import jaxmeter as jm
from jaxmeter import experiment

CONVOLUTIONS = ("conv_1", "conv_2", "conv_3", "conv_4", "conv_5")
FIT = jm.FitConfig(members=5, epochs=10)  # a fifth of the usual work: there are 20 fits a run


def reading(name: str, **signals: Any) -> jm.Learned:
    """A learned attack that reads these signals and the label, nothing else."""
    spec = jm.SignalSpec(**{"outputs": (), "loss": False, **signals})
    return jm.Learned(spec, name=name, config=FIT)


BASE = replace(
    alexnet_cifar100.BASE,
    study="alexnet_cifar100_layers",
    attacks=(
        jm.NegativeLoss(),
        *(reading(f"output {layer}", outputs=(layer,)) for layer in (*CONVOLUTIONS, "logits")),
        *(reading(f"gradient {layer}", gradients=(f"{layer}/bias",)) for layer in CONVOLUTIONS),
        reading("gradient out", gradients=("out",)),
        *(reading(f"norm {layer}", gradient_norm=(layer,)) for layer in (*CONVOLUTIONS, "out")),
        reading("all norms", gradient_norm=True),
        jm.Blind(),
    ),
)
AXES = {"seed": (0, 1, 2, 3, 4)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
