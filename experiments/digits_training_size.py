"""Digits: what does an attack gain from knowing more members?

    python experiments/digits_training_size.py sweep
    python experiments/digits_training_size.py table --metrics auc tpr_at_0.01 accuracy
    python experiments/digits_training_size.py plot --metrics auc accuracy

A network that has memorised 898 digits is attacked by someone who knows 25 to 449 of them, and as
many non-members. All are measured on the same 449 members and 449 non-members, whatever is known.
`docs/studies.md` reads the table.

Cost: 6 minutes for the 25 runs on two CPU cores that did other work as well. AUC by `known`:

| attack | 25 | 50 | 100 | 200 | 449
| --- | ---: | ---: | ---: | ---: | ---:
| negative loss | .602 ± .025 | .602 ± .025 | .602 ± .025 | .602 ± .025 | .602 ± .025
| gradient norm | .607 ± .025 | .607 ± .025 | .607 ± .025 | .607 ± .025 | .607 ± .025
| class-wise modified entropy | .628 ± .032 | .633 ± .018 | .638 ± .009 | .627 ± .014 | .640 ± .018
| black box | .602 ± .025 | .602 ± .025 | .613 ± .026 | .631 ± .039 | .653 ± .040
| white box | .602 ± .025 | .604 ± .024 | .614 ± .028 | .650 ± .055 | .693 ± .015
| white box + norms | .607 ± .026 | .612 ± .036 | .625 ± .040 | .689 ± .019 | .698 ± .011
| blind baseline | .513 ± .023 | .505 ± .014 | .500 ± .021 | .505 ± .022 | .510 ± .016

Balanced accuracy, in per cent:

| attack | 25 | 50 | 100 | 200 | 449 |
| --- | ---: | ---: | ---: | ---: | ---: |
| negative loss | 57.9 ± 5.2 | 60.4 ± 4.8 | 60.0 ± 3.8 | 62.2 ± 2.8 | 63.3 ± 1.2 |
| gradient norm | 57.6 ± 5.5 | 62.4 ± 4.1 | 61.1 ± 5.3 | 65.1 ± 1.9 | 65.2 ± 1.3 |
| class-wise modified entropy | 59.1 ± 2.9 | 61.2 ± 3.5 | 58.2 ± 2.7 | 58.2 ± 5.5 | 62.1 ± 1.8 |
| black box | 57.6 ± 5.5 | 60.3 ± 4.9 | 58.5 ± 4.0 | 62.4 ± 3.2 | 61.8 ± 1.0 |
| white box | 57.6 ± 5.5 | 60.3 ± 2.5 | 59.2 ± 3.3 | 62.2 ± 2.5 | 63.8 ± 1.8 |
| white box + norms | 56.5 ± 5.8 | 60.6 ± 2.1 | 59.3 ± 3.6 | 62.4 ± 1.8 | 64.6 ± 1.1 |
| blind baseline | 50.3 ± 1.7 | 50.4 ± 1.5 | 50.2 ± 1.4 | 50.2 ± 2.0 | 50.1 ± 0.9 |

Mean ± standard deviation over 5 seeds; Python 3.11, jax 0.10.2, keras 3.15.1.
"""

import jaxmeter as jm
from jaxmeter import experiment

BASE = experiment.Config(
    study="digits_training_size",
    seed=0,
    data=experiment.Digits(),
    target=experiment.Cnn(
        initial=experiment.Variance(scale=100.0),  # a network that memorises, as the demo's
        training=experiment.Training(epochs=100),
    ),
    attacks=(
        jm.NegativeLoss(),
        jm.GradientNorm(),
        jm.ClassWise(),
        jm.Learned(jm.SignalSpec(), name="black box"),
        jm.Learned(name="white box"),
        jm.Learned(jm.SignalSpec(gradients=("out",), gradient_norm=True), name="white box + norms"),
        jm.Blind(),
    ),
)
AXES = {"known": (25, 50, 100, 200, 449), "seed": (0, 1, 2, 3, 4)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
