"""The calibrated white box against LiRA and its kin, with the same reference models.

    JAXMETER_DATA=FOLDER python experiments/calibrated_whitebox.py sweep
    python experiments/calibrated_whitebox.py table --by data.file target.k attack

A pool of models is trained on one data set, in complementary pairs, each on half of the records.
Eight of them in turn are the target, attacked with k others, of which its complement is none, so
that all attacks have the same models and nothing of the target but its variables and outputs.
`docs/calibrated_whitebox.md` reads the tables.

Records come from location30.npz, cifar100.npz and adult.npz in the folder that JAXMETER_DATA names.

Cost: about an hour on two CPU cores that did much other work: half of it for training CIFAR-100's
models, 15 minutes for signals, the rest for the 120 runs' attacks. With 32 models, AUC and TPR at
0.1% FPR in per cent:

| attack | Location-30 | CIFAR-100 | Adult |
| --- | ---: | ---: | ---: |
| LiRA | .909 / 8.2 | .907 / 9.0 | .619 / 2.0 |
| LiRA, own variance | .912 / 5.5 | .910 / 7.6 | .641 / 2.4 |
| log-ratio | .853 / 7.2 | .910 / 11.4 | .648 / 2.0 |
| RMIA | .851 / 6.4 | .910 / 11.3 | .645 / 2.0 |
| BaVarIA | .913 / 8.3 | .913 / 9.6 | .639 / 3.2 |
| LiRA, gradient norm | .914 / 1.7 | .852 / 0.4 | .596 / 0.2 |
| calibrated: norms, alignment | .958 / 40.6 | .937 / 20.5 | .654 / 3.9 |

Means over eight targets; Python 3.11, jax 0.10.2, flax 0.12.8.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxmeter as jm
from jaxmeter import experiment, reference, shadow


@dataclass(frozen=True, kw_only=True)
class Distinct:
    """Different records of a file in the folder that JAXMETER_DATA names.

    Attributes:
      file: its name.
      n: how many are taken, by chance.
      classes: of the first so many classes.
      part: what the names of the file's arrays end in.
    """

    file: str = "location30.npz"
    n: int = 5010
    classes: int = 30
    part: str = ""

    def files(self) -> tuple[Path, ...]:
        """The file."""
        path = Path(os.environ.get("JAXMETER_DATA", ".")) / self.file
        if not path.is_file():
            raise FileNotFoundError(f"{path}? It is read from the folder that JAXMETER_DATA names.")
        return (path,)

    def read(self, key: jax.Array) -> jm.Records:
        """The records in the order of the file; none is a member until a pool says so."""
        with np.load(self.files()[0], allow_pickle=False) as file:
            x, y = file[f"x{self.part}"], file[f"y{self.part}"]
        rows = np.flatnonzero(y < self.classes)
        flat = x[rows].reshape(len(rows), -1)
        rows = rows[np.sort(np.unique(flat, axis=0, return_index=True)[1])]
        rows = np.sort(np.random.default_rng(0).permutation(rows)[: self.n])
        return jm.Records(x[rows], y[rows].astype(np.int32), np.zeros(len(rows), bool))


@dataclass(frozen=True, kw_only=True)
class Network:
    """Strided convolutions, for images of bytes, and dense layers.

    Attributes:
      filters: channels of the convolutions; none for records that are no images.
      widths: units of the hidden dense layers.
      tanh: between the layers; else ReLU.
      deviation: of the dense layers' initial kernels; None for Flax's own.
    """

    filters: tuple[int, ...] = ()
    widths: tuple[int, ...] = (512, 256, 128)
    tanh: bool = False
    deviation: float | None = None

    def built(self, shape: tuple[int, ...], *, n_classes: int, seed: int) -> shadow.Architecture:
        """The architecture; reference models draw their weights by keys of their own."""
        return shadow.of_flax(Layers(self, n_classes), input_shape=shape)


class Layers(nn.Module):
    """A network."""

    of: Network
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        bend, deviation = jnp.tanh if self.of.tanh else nn.relu, self.of.deviation
        drawn = nn.initializers.normal(deviation) if deviation else nn.initializers.lecun_normal()
        x = x / 127.5 - 1.0 if self.of.filters else x
        for i, width in enumerate(self.of.filters, start=1):
            x = bend(nn.Conv(width, (3, 3), (2, 2), name=f"conv_{i}")(x))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.of.widths, start=1):
            x = bend(nn.Dense(width, kernel_init=drawn, name=f"dense_{i}")(x))
        return nn.Dense(self.classes, kernel_init=drawn, name="logits")(x)


@dataclass(frozen=True, kw_only=True)
class Calibrated(jm.CalibratedInference):
    """`CalibratedInference`, with the key and the order of records of the published tables.

    A network's batches are drawn by the records' places; there, these were the records' in the
    data, not those of the parts one after the other.
    """

    online: bool = True  # type: ignore[misc]

    def run(
        self, key: jax.Array, fit: jm.Evidence, select: jm.Evidence, held: jm.Evidence
    ) -> jm.AttackOutput:
        """Scores of the select and the held-out part; nobody's membership in the target is used."""
        first = len(fit.records.y) + len(select.records.y)
        order = np.random.default_rng(0).permutation(first + len(held.records.y))
        known, rest = np.sort(order[:first]), np.sort(order[first:])  # as a pool's parts are dealt
        place = np.argsort(np.concatenate([known, rest]))
        signals, models, seen = (a[..., place] for a in self._given(fit, select, held))
        learned = reference.learn(
            jax.random.key(0), models, seen, online=self.online, config=self.network
        )
        scores = learned.scores(signals, models, seen)
        return jm.AttackOutput(scores[known][len(fit.records.y) :], scores[rest])


@dataclass(frozen=True, kw_only=True)
class Config(experiment.Config):
    """A run of this study."""

    data: Distinct = Distinct()  # type: ignore[assignment]


RECIPE = shadow.RecipeConfig(epochs=60)
DECAYING = replace(RECIPE, schedule="cosine")
# With what `calibrated_whitebox_signals.py` reads, so that both find the same signals in the store.
SCALARS = ("alignment", "mean cosine", "class distance", "input norm")
READ = jm.SignalSpec(loss=False, label=False, gradient_norm=True, scalars=SCALARS)
STANDARD = Calibrated(name="calibrated: norms, alignment")
BASE = Config(
    study="calibrated_whitebox",
    seed=0,
    target=experiment.Pool(
        models=66,
        architecture=Network(tanh=True, deviation=0.01),  # ML Privacy Meter's
        recipe=RECIPE,
        spec=READ,
    ),
    attacks=(
        jm.Lira(),
        jm.Lira(variance="own"),
        jm.LogRatio(),
        jm.Rmia(),
        jm.Bavaria(),
        jm.Lira(statistic="gradient norm"),
        STANDARD,
    ),
    fractions=(0.2, 0.0, 0.8),  # RMIA's population, and what all attacks are measured on
)
LOCATION30 = {"data": BASE.data}
CIFAR100 = {
    # Of all 100 classes, so few images a class are learned by heart so well that every attack finds
    # nearly all members.
    "data": Distinct(file="cifar100.npz", part="_train", classes=20, n=9984),
    "target.architecture": Network(filters=(16, 32, 64), widths=(128,)),
    "target.recipe": replace(DECAYING, epochs=20),
    "target.spec": replace(READ, scalars=(*SCALARS, "queries")),
}
ADULT = {
    "data": Distinct(file="adult.npz", part="_train", classes=2, n=6016),
    "target.architecture": Network(widths=(512, 256)),
    "target.recipe": replace(DECAYING, epochs=30),
}
TARGETS = (0, 9, 16, 25, 32, 41, 48, 57)  # of pairs far apart, by turns the first and the second
AXES = [
    {**kind, "target.k": k, "target.index": index}
    for kind in (LOCATION30, CIFAR100, ADULT)
    for k in (4, 8, 16, 32, 64)
    for index in TARGETS
]

if __name__ == "__main__":
    experiment.main(BASE, AXES)
