"""Which signals the calibrated white box needs, with 32 reference models.

    JAXMETER_DATA=FOLDER python experiments/calibrated_whitebox_signals.py sweep
    python experiments/calibrated_whitebox_signals.py table --by data.file attack

The pools, targets and records of `calibrated_whitebox.py`, which one store trains once for both.
The calibrated attack reads the log-odds and what its name says; offline, it uses no model that saw
the record. `docs/calibrated_whitebox.md` reads the table.

Cost: 25 minutes on two CPU cores that did other work, without the pools. AUC and TPR at 0.1% FPR in
per cent:

| attack | Location-30 | CIFAR-100 | Adult |
| --- | ---: | ---: | ---: |
| LiRA | .909 / 8.2 | .907 / 9.0 | .619 / 2.0 |
| calibrated: log odds | .918 / 9.3 | .920 / 13.9 | .655 / 3.9 |
| calibrated: norms | .927 / 13.2 | .921 / 14.1 | .660 / 4.0 |
| calibrated: alignment | .954 / 37.6 | .935 / 19.7 | .650 / 3.9 |
| calibrated: norms, alignment | .958 / 40.6 | .937 / 20.5 | .654 / 3.9 |
| calibrated, offline | .957 / 39.6 | .934 / 18.6 | .644 / 3.7 |
| calibrated: mean cosine | .915 / 8.6 | | |
| calibrated: class distance | .917 / 10.2 | | |
| calibrated: input norm | .925 / 11.9 | | |
| calibrated: queries | | .923 / 14.3 | |
| calibrated: everything | .958 / 41.4 | .937 / 21.5 | |

Means over eight targets; Python 3.11, jax 0.10.2, flax 0.12.8.
"""

from dataclasses import replace

import calibrated_whitebox as pools

import jaxmeter as jm
from jaxmeter import experiment


def reading(name: str, *signals: str) -> pools.Calibrated:
    """The calibrated attack on the log-odds and these signals."""
    return pools.Calibrated(signals=("log odds", *signals), name=f"calibrated: {name}")


BASE = replace(
    pools.BASE,
    study="calibrated_whitebox_signals",
    attacks=(
        jm.Lira(),
        reading("log odds"),
        reading("norms", "gradient norms"),
        reading("alignment", "alignment"),
        pools.STANDARD,
        pools.Calibrated(name="calibrated, offline", online=False),
    ),
)
ALL = ("gradient norms", *pools.SCALARS)
MORE = (
    (
        pools.LOCATION30,
        (
            *(reading(signal, signal) for signal in pools.SCALARS[1:]),
            reading("everything", *ALL),
        ),
    ),
    (pools.CIFAR100, (reading("queries", "queries"), reading("everything", *ALL, "queries"))),
    (pools.ADULT, ()),
)
AXES = [
    {**kind, "attacks": (*BASE.attacks, *more), "target.index": index}
    for kind, more in MORE
    for index in pools.TARGETS
]

if __name__ == "__main__":
    experiment.main(BASE, AXES)
