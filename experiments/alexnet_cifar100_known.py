"""AlexNet on CIFAR-100: what does an attack gain from knowing more members?

    python experiments/alexnet_cifar100_known.py sweep
    python experiments/alexnet_cifar100_known.py table --metrics auc tpr_at_0.01 accuracy
    python experiments/alexnet_cifar100_known.py plot --metrics auc tpr_at_0.01

The targets and signals of `alexnet_cifar100.py`, which one store computes once for both, and its
attacks, fitted on 50 to 4,500 known members and as many non-members. All are measured on the same
5,000 members and 5,000 non-members. `docs/studies.md` reads the tables.

Cost: 0 minutes a seed on two CPU cores that did other work as well, without the targets. One of the
five seeds is measured. AUC by `known`:

| attack | 50 | 150 | 500 | 1500 | 4500 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | .943 | .943 | .943 | .943 | .943 |
| gradient norm | .947 | .947 | .947 | .947 | .947 |
| black box | .943 | .943 | .963 | .965 | .968 |
| last two outputs | .943 | .943 | .967 | .968 | .970 |
| white box | .943 | .943 | .969 | .973 | .975 |
| white box + norms | .943 | .943 | .974 | .978 | .981 |

TPR at 1% FPR, in per cent:

| attack | 50 | 150 | 500 | 1500 | 4500 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | 5.2 | 5.2 | 5.2 | 5.2 | 5.2 |
| gradient norm | 5.1 | 5.1 | 5.1 | 5.1 | 5.1 |
| black box | 5.2 | 5.2 | 12.9 | 20.4 | 33.2 |
| last two outputs | 5.2 | 5.2 | 25.1 | 26.8 | 31.1 |
| white box | 5.2 | 5.2 | 28.5 | 40.0 | 45.3 |
| white box + norms | 5.2 | 5.2 | 39.2 | 47.5 | 52.4 |

Balanced accuracy, in per cent:

| attack | 50 | 150 | 500 | 1500 | 4500 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | 90.5 | 92.0 | 92.0 | 92.1 | 92.1 |
| gradient norm | 92.7 | 92.7 | 92.7 | 92.8 | 92.8 |
| black box | 88.8 | 92.0 | 93.3 | 93.3 | 93.3 |
| last two outputs | 88.8 | 92.0 | 93.4 | 93.6 | 93.5 |
| white box | 88.8 | 92.0 | 92.6 | 93.6 | 93.7 |
| white box + norms | 88.8 | 92.0 | 93.8 | 93.7 | 94.2 |

One seed; Python 3.11, jax 0.10.2, keras 3.15.1.
"""

from dataclasses import replace

import alexnet_cifar100

from jaxmeter import experiment

BASE = replace(
    alexnet_cifar100.BASE,
    study="alexnet_cifar100_known",
    attacks=alexnet_cifar100.BASE.attacks[:-1],  # all but the blind baseline
)
AXES = {"known": (50, 150, 500, 1500, 4500), "seed": (0, 1, 2, 3, 4)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
