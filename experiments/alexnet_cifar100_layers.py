"""AlexNet on CIFAR-100: which signal of which layer gives away how much?

    python experiments/alexnet_cifar100_layers.py sweep
    python experiments/alexnet_cifar100_layers.py table --metrics auc tpr_at_0.01 accuracy

The targets of `alexnet_cifar100.py`, which one store trains once for both. For each of the six
layers one attack reads its output, one its gradient, one its gradient's norm, and the label. The
kernels of convolutions have up to 885,000 numbers, whose gradients for all records would take 150
GB; of convolutions the bias' gradient is read instead, the same back-propagated error summed over
positions, and the norm is that of kernel and bias together. `docs/studies.md` reads the table.

Cost: 2 to 6 minutes a seed on one CPU core, without the targets. Attacks are ensembles of 5
networks instead of 10, fitted for 10 epochs instead of 25.

| attack | runs | AUC | TPR at 1% FPR (%) | balanced accuracy (%) |
| --- | ---: | ---: | ---: | ---: |
| negative loss | 5 | 0.944 ± 0.004 | 4.2 ± 0.8 | 91.9 ± 0.2 |
| output conv_1 | 5 | 0.498 ± 0.002 | 1.0 ± 0.2 | 49.8 ± 0.1 |
| output conv_2 | 5 | 0.502 ± 0.004 | 1.0 ± 0.4 | 50.1 ± 0.4 |
| output conv_3 | 5 | 0.522 ± 0.005 | 1.3 ± 0.2 | 51.6 ± 0.3 |
| output conv_4 | 5 | 0.616 ± 0.007 | 2.3 ± 0.2 | 58.0 ± 0.4 |
| output conv_5 | 5 | 0.695 ± 0.006 | 4.5 ± 0.5 | 64.0 ± 0.5 |
| output logits | 5 | 0.968 ± 0.002 | 29.7 ± 6.0 | 93.7 ± 0.2 |
| gradient conv_1 | 5 | 0.954 ± 0.003 | 13.1 ± 2.6 | 92.4 ± 0.3 |
| gradient conv_2 | 5 | 0.955 ± 0.003 | 14.9 ± 1.5 | 92.4 ± 0.2 |
| gradient conv_3 | 5 | 0.958 ± 0.002 | 19.6 ± 1.5 | 92.2 ± 0.2 |
| gradient conv_4 | 5 | 0.957 ± 0.003 | 18.4 ± 2.1 | 92.3 ± 0.2 |
| gradient conv_5 | 5 | 0.956 ± 0.003 | 17.9 ± 3.3 | 92.2 ± 0.2 |
| gradient out | 5 | 0.975 ± 0.001 | 43.7 ± 3.3 | 94.0 ± 0.3 |
| norm conv_1 | 5 | 0.957 ± 0.003 | 13.7 ± 2.4 | 92.9 ± 0.2 |
| norm conv_2 | 5 | 0.957 ± 0.003 | 12.8 ± 2.4 | 93.0 ± 0.2 |
| norm conv_3 | 5 | 0.956 ± 0.003 | 13.7 ± 2.4 | 93.0 ± 0.3 |
| norm conv_4 | 5 | 0.956 ± 0.003 | 13.8 ± 2.4 | 92.8 ± 0.2 |
| norm conv_5 | 5 | 0.955 ± 0.003 | 13.7 ± 2.8 | 92.7 ± 0.2 |
| norm out | 5 | 0.955 ± 0.003 | 13.2 ± 2.3 | 92.7 ± 0.2 |
| all norms | 5 | 0.966 ± 0.002 | 27.0 ± 2.7 | 93.2 ± 0.5 |
| blind baseline | 5 | 0.500 ± 0.007 | 1.0 ± 0.3 | 49.9 ± 0.4 |

Mean ± standard deviation over five seeds; Python 3.11, jax 0.10.2, keras 3.15.1.
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
