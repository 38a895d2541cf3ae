"""AlexNet on CIFAR-100: what does an attack gain from knowing more members?

    python experiments/alexnet_cifar100_known.py sweep
    python experiments/alexnet_cifar100_known.py table --metrics auc tpr_at_0.01 accuracy
    python experiments/alexnet_cifar100_known.py plot --metrics auc tpr_at_0.01

The targets and signals of `alexnet_cifar100.py`, which one store computes once for both, and its
attacks, fitted on 50 to 4,500 known members and as many non-members. All are measured on the same
5,000 members and 5,000 non-members. `docs/studies.md` reads the tables.

Cost: 30 seconds a run on two CPU cores that did other work as well, without the targets. AUC by
`known`:

| attack | 50 | 150 | 500 | 1500 | 4500 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | .944 ± .004 | .944 ± .004 | .944 ± .004 | .944 ± .004 | .944 ± .004 |
| gradient norm | .948 ± .003 | .948 ± .003 | .948 ± .003 | .948 ± .003 | .948 ± .003 |
| black box | .944 ± .004 | .951 ± .008 | .964 ± .004 | .967 ± .003 | .969 ± .002 |
| last two outputs | .948 ± .007 | .956 ± .011 | .968 ± .004 | .970 ± .002 | .972 ± .001 |
| white box | .947 ± .008 | .951 ± .009 | .969 ± .003 | .972 ± .002 | .976 ± .002 |
| white box + norms | .948 ± .010 | .960 ± .015 | .975 ± .001 | .978 ± .001 | .981 ± .001 |

TPR at 1% FPR, in per cent:

| attack | 50 | 150 | 500 | 1500 | 4500 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | 4.2 ± 0.8 | 4.2 ± 0.8 | 4.2 ± 0.8 | 4.2 ± 0.8 | 4.2 ± 0.8 |
| gradient norm | 4.1 ± 0.7 | 4.1 ± 0.7 | 4.1 ± 0.7 | 4.1 ± 0.7 | 4.1 ± 0.7 |
| black box | 4.2 ± 0.8 | 10.2 ± 8.7 | 21.7 ± 10.4 | 28.3 ± 6.3 | 33.3 ± 2.7 |
| last two outputs | 8.3 ± 9.0 | 16.9 ± 12.8 | 29.2 ± 7.9 | 34.2 ± 6.6 | 36.2 ± 4.3 |
| white box | 5.5 ± 3.2 | 9.9 ± 7.7 | 27.8 ± 7.1 | 36.6 ± 3.6 | 44.0 ± 4.1 |
| white box + norms | 5.7 ± 3.5 | 19.8 ± 14.9 | 37.2 ± 4.2 | 43.6 ± 3.1 | 52.5 ± 1.7 |

Balanced accuracy, in per cent:

| attack | 50 | 150 | 500 | 1500 | 4500 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | 90.7 ± 0.8 | 91.7 ± 0.3 | 91.8 ± 0.4 | 91.8 ± 0.3 | 91.9 ± 0.2 |
| gradient norm | 92.0 ± 1.3 | 92.7 ± 0.3 | 92.7 ± 0.2 | 92.8 ± 0.2 | 92.9 ± 0.2 |
| black box | 90.6 ± 1.1 | 91.6 ± 0.2 | 93.3 ± 0.6 | 93.4 ± 0.3 | 93.7 ± 0.2 |
| last two outputs | 90.9 ± 1.5 | 90.6 ± 2.6 | 93.2 ± 0.5 | 93.8 ± 0.3 | 93.9 ± 0.3 |
| white box | 91.1 ± 1.5 | 92.1 ± 0.7 | 93.4 ± 0.5 | 93.6 ± 0.5 | 94.1 ± 0.3 |
| white box + norms | 91.1 ± 1.5 | 92.9 ± 1.1 | 93.7 ± 0.7 | 94.1 ± 0.4 | 94.6 ± 0.3 |

Mean ± standard deviation over five seeds; Python 3.11, jax 0.10.2, keras 3.15.1.
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
