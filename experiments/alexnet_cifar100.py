"""AlexNet on CIFAR-100: the three configurations of ML Privacy Meter's tutorial.

    python experiments/alexnet_cifar100.py sweep
    python experiments/alexnet_cifar100.py table --metrics auc tpr_at_0.01 accuracy test_accuracy

The tutorial's network, trained on 10,000 images until it knows 99% of them; its attacks are the
white box (last layer's gradients, output, loss, label), the last two layers' outputs with loss and
label, and the black box (output and label). They know 5,000 members and 5,000 non-members and are
measured on as many others. `docs/studies.md` reads the table.

Images come from `keras.datasets.cifar100`, from cifar100.npz in the folder that JAXMETER_DATA
names, or from `--data.path FILE`. `--data.members 50000` trains on as many as the paper's authors
did; `experiment.AlexNet.tutorial()` is the tutorial's own recipe, which is for that many.

Cost: 6 to 8 minutes a seed on two CPU cores, several times that while they did other work. Accuracy
1.000 ± 0.000 on members, 0.243 ± 0.004 on others.

| attack | runs | AUC | TPR at 1% FPR (%) | balanced accuracy (%) |
| --- | ---: | ---: | ---: | ---: |
| negative loss | 5 | 0.944 ± 0.004 | 4.2 ± 0.8 | 91.9 ± 0.2 |
| gradient norm | 5 | 0.948 ± 0.003 | 4.1 ± 0.7 | 92.9 ± 0.2 |
| black box | 5 | 0.969 ± 0.001 | 33.2 ± 2.1 | 93.7 ± 0.2 |
| last two outputs | 5 | 0.972 ± 0.001 | 36.9 ± 4.2 | 93.9 ± 0.3 |
| white box | 5 | 0.976 ± 0.002 | 45.3 ± 4.4 | 94.0 ± 0.2 |
| white box + norms | 5 | 0.981 ± 0.001 | 52.5 ± 2.9 | 94.5 ± 0.3 |
| blind baseline | 5 | 0.500 ± 0.007 | 1.0 ± 0.3 | 49.9 ± 0.4 |

Mean ± standard deviation over seeds; Python 3.11, jax 0.10.2, keras 3.15.1.
"""

import jaxmeter as jm
from jaxmeter import experiment

BASE = experiment.Config(
    study="alexnet_cifar100",
    seed=0,
    data=experiment.Cifar100(),
    target=experiment.AlexNet(),
    attacks=(
        jm.NegativeLoss(),
        jm.GradientNorm(),
        jm.Learned(jm.SignalSpec(loss=False), name="black box"),
        jm.Learned(jm.SignalSpec(outputs=("flatten", "logits")), name="last two outputs"),
        jm.Learned(name="white box"),
        jm.Learned(jm.SignalSpec(gradients=("out",), gradient_norm=True), name="white box + norms"),
        jm.Blind(),
    ),
    overlap="drop",  # some images occur twice, and one on both sides has no defined membership
)
AXES = {"seed": (0, 1, 2, 3, 4)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
