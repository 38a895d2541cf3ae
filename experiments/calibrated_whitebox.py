"""The calibrated white box against LiRA and its kin, with the same reference models.

    python experiments/calibrated_whitebox.py sweep
    python experiments/calibrated_whitebox.py table

A pool of models is trained on one data set, in complementary pairs, each on half of the records.
Eight of them in turn are the target, attacked with k others, of which its complement is none, so
that all attacks have the same models and nothing of the target but its variables and outputs.
`docs/calibrated_whitebox.md` reads the tables.

Records come from location30.npz, cifar100.npz and adult.npz in the folder that JAXMETER_DATA names.
What was computed is kept in `--store`, and the same command goes on after an interruption.

Cost: about an hour on two CPU cores that did much other work: half of it for training CIFAR-100's
models, 15 minutes for signals, the rest for the 120 attacks. With 32 models, AUC and TPR at 0.1%
FPR in per cent:

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

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxmeter as jm
from jaxmeter import reference, shadow
from jaxmeter.attacks.white_box import Signal, stacked

DataSet = Literal["location30", "cifar100", "adult"]
Score = Callable[..., NDArray]
STANDARD: tuple[Signal, ...] = ("log odds", "gradient norms", "alignment")
MAIN: dict[str, tuple[Signal, ...]] = {
    "log odds": ("log odds",),
    "norms": ("log odds", "gradient norms"),
    "alignment": ("log odds", "alignment"),
    "norms, alignment": STANDARD,
}
ABLATIONS: dict[DataSet, dict[str, tuple[Signal, ...]]] = {
    "location30": {
        **MAIN,
        "mean cosine": ("log odds", "mean cosine"),
        "class distance": ("log odds", "class distance"),
        "input norm": ("log odds", "input norm"),
        "everything": (*STANDARD, "mean cosine", "class distance", "input norm"),
    },
    "cifar100": {
        **MAIN,
        "queries": ("log odds", "queries"),
        "everything": (*STANDARD, "mean cosine", "class distance", "input norm", "queries"),
    },
    "adult": MAIN,
}
STANDARD_NAME = "calibrated: norms, alignment"
NAMED = (
    "LiRA",
    "LiRA, own variance",
    "log-ratio",
    "RMIA",
    "BaVarIA",
    "LiRA, gradient norm",
    "LiRA, first layer's norm",
)
SHOWN = ("loss", "LiRA", "LiRA, levels taken out", STANDARD_NAME, "calibrated, offline")
UNLIKE: dict[str, tuple[dict[str, Any], int]] = {  # changes of the recipe, and members
    "20 epochs": ({"epochs": 20}, 2500),
    "150 epochs": ({"epochs": 150}, 2500),
    "three times the learning rate": ({"learning_rate": 3e-3}, 2500),
    "batches of 256": ({"batch_size": 256}, 2500),
    "1,200 members": ({}, 1200),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: a data set and a number of reference models.

    Attributes:
      study: its name.
      data: what the models are trained on.
      pool: models that are trained, an even number; k and two more at least.
      k: reference models of an attack.
      targets: models that are attacked, each from another pair.
      population: share of the records that RMIA knows to be non-members; no attack is measured on
        them.
      ablations: whether the network is fitted on other signals too.
      seed: of everything.
    """

    study: str = "calibrated_whitebox"
    data: DataSet = "location30"
    pool: int = 66
    k: int = 32
    targets: int = 8
    population: float = 0.2
    ablations: bool = False
    seed: int = 0


BASE = Config()
AXES = {"data": ("location30", "cifar100", "adult"), "k": (4, 8, 16, 32, 64)}


# --- The data sets and what is trained on them ----------------------------------------------------


class Kind(NamedTuple):
    """Records, a network and its recipe."""

    x: NDArray
    y: NDArray[np.int32]
    architecture: shadow.Architecture
    recipe: shadow.RecipeConfig


class Perceptron(nn.Module):
    """Dense layers."""

    classes: int
    widths: tuple[int, ...]
    tanh: bool = False
    initial: float | None = None  # standard deviation of initial kernels; None for Flax's own

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        draw = nn.initializers.lecun_normal()
        if self.initial is not None:
            draw = nn.initializers.normal(self.initial)
        for i, width in enumerate(self.widths, start=1):
            x = nn.Dense(width, kernel_init=draw, name=f"dense_{i}")(x)
            x = jnp.tanh(x) if self.tanh else nn.relu(x)
        return nn.Dense(self.classes, kernel_init=draw, name="logits")(x)


class Convolutions(nn.Module):
    """Three strided convolutions and two dense layers; bytes go in."""

    classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    hidden: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images 0..255."""
        x = x / 127.5 - 1.0
        for i, width in enumerate(self.widths, start=1):
            x = nn.relu(nn.Conv(width, (3, 3), (2, 2), name=f"conv_{i}")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, name="dense_1")(x))
        return nn.Dense(self.classes, name="logits")(x)


def location30(file: Any) -> Kind:
    """5,010 records of 446 binary features, 30 classes, less copies; ML Privacy Meter's network."""
    x, y = file["x"], file["y"]
    rows = first_of_equal(x)
    rows = rows[: len(rows) // 2 * 2]
    net = shadow.of_flax(Perceptron(30, (512, 256, 128), True, 0.01), input_shape=x.shape[1:])
    recipe = shadow.RecipeConfig(learning_rate=1e-3, epochs=60, batch_size=64)
    return Kind(x[rows], y[rows].astype(np.int32), net, recipe)


def cifar100(file: Any) -> Kind:
    """9,984 training images of the first 20 classes and a small convolutional network.

    Of all 100 classes, so few images a class are learned by heart so well that every attack finds
    nearly all members.
    """
    x, y = file["x_train"], file["y_train"]
    rows = np.flatnonzero(y < 20)
    rows = some_of(rows[first_of_equal(x[rows])], 9984)
    net = shadow.of_flax(Convolutions(20), input_shape=x.shape[1:])
    recipe = shadow.RecipeConfig(learning_rate=1e-3, schedule="cosine", epochs=20, batch_size=64)
    return Kind(x[rows], y[rows].astype(np.int32), net, recipe)


def adult(file: Any) -> Kind:
    """6,016 of the people, and a network that has more parameters than it needs."""
    x, y = file["x_train"], file["y_train"]
    rows = some_of(first_of_equal(x), 6016)
    net = shadow.of_flax(Perceptron(2, (512, 256)), input_shape=x.shape[1:])
    recipe = shadow.RecipeConfig(learning_rate=1e-3, schedule="cosine", epochs=30, batch_size=64)
    return Kind(x[rows], y[rows].astype(np.int32), net, recipe)


KINDS: dict[DataSet, Callable[[Any], Kind]] = {
    "location30": location30,
    "cifar100": cifar100,
    "adult": adult,
}


def kind_of(data: DataSet) -> Kind:
    """The data set, from the folder that JAXMETER_DATA names."""
    folder = os.environ.get("JAXMETER_DATA")
    path = Path(folder or ".") / f"{data}.npz"
    if not folder or not path.exists():
        raise SystemExit(f"{data}.npz is read from the folder that JAXMETER_DATA names; {path}?")
    with np.load(path) as file:
        return KINDS[data](file)


def some_of(rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """n of the rows, drawn without replacement, in their order."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:n])


def first_of_equal(x: NDArray) -> NDArray[np.intp]:
    """Indices of records that differ from all before them, in order; labels do not count."""
    return np.sort(np.unique(x.reshape(len(x), -1), axis=0, return_index=True)[1])


# --- The pool -------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """What trained models say of all records.

    Attributes:
      signals: of all models, leaves `[models, n]`.
      was_member: bool `[models, n]`.
      y: labels `[n]`.
      seconds: that a model's logits took, and logits with norms and alignment.
    """

    signals: jm.Signals
    was_member: NDArray[np.bool_]
    y: NDArray
    seconds: dict[str, float]

    def stacked(self, names: tuple[Signal, ...]) -> NDArray:
        """Signals by name, `[models, s, n]`."""
        return stacked(names, self.signals, self.y)


def everything_of(kind: Kind) -> jm.SignalSpec:
    """All signals that such records have, but random projections."""
    unread = {"projections"} if kind.x.ndim == 4 else {"projections", "queries"}
    scalars = tuple(scalar for scalar in jm.signals.SCALARS if scalar not in unread)
    return jm.SignalSpec(loss=False, label=False, gradient_norm=True, scalars=scalars)


def pool_of(config: Config, place: Path) -> Pool:
    """Trains the models and takes their signals, or reads them if that was done before."""
    kind = kind_of(config.data)
    draw_key, train_key = jax.random.split(jax.random.key(config.seed))
    was_member = shadow.balanced_membership(draw_key, config.pool, len(kind.y))
    if not (place / "signals").exists():
        models, _, finite = shadow.train_all(
            train_key,
            kind.architecture,
            kind.x,
            kind.y,
            was_member,
            kind.recipe.recipe(),
            checkpoint=place / "models",
        )
        if not finite.all():
            raise SystemExit(f"{(~finite).sum()} models of {config.data} diverged.")
        seconds = {}
        records = jm.Records(kind.x, kind.y, np.zeros(len(kind.y), bool))
        everything = everything_of(kind)
        white = replace(everything, scalars=("alignment",))
        some = shadow.model(models, slice(0, 4))
        for name, spec in (("logits", jm.SignalSpec(loss=False, label=False)), ("white", white)):
            shadow.extract(shadow.model(models, slice(0, 1)), records, spec)  # compiles
            start = time.perf_counter()
            shadow.extract(some, records, spec)
            seconds[name] = (time.perf_counter() - start) / 4
        (place / "seconds.json").write_text(json.dumps(seconds), "utf-8")
        shadow.extract(models, records, everything, out=place / "signals")
    signals = shadow.load(place / "signals")
    return Pool(signals, was_member, kind.y, json.loads((place / "seconds.json").read_text()))


# --- The attacks ----------------------------------------------------------------------------------


class Attacked(NamedTuple):
    """One target's scores by attack, what they should say, and the seconds each took."""

    scores: dict[str, NDArray]  # [held]
    is_member: NDArray  # [held]
    seconds: dict[str, float]

    @property
    def results(self) -> dict[str, jm.AttackResult]:
        """Every attack, measured."""
        return {name: jm.evaluate(score, self.is_member) for name, score in self.scores.items()}


def attacked(
    target: jm.Signals, is_member: NDArray, pool: Pool, models: NDArray, config: Config
) -> Attacked:
    """All attacks on one target with some models; measured on all records but RMIA's population."""
    n = len(pool.y)
    order = np.random.default_rng(config.seed).permutation(n)
    cut = int(config.population * n)
    apart, held = np.sort(order[:cut]), np.sort(order[cut:])
    apart = apart[~is_member[apart]]
    seen, key = pool.was_member[models], jax.random.key(config.seed)

    def of(*names: Signal) -> tuple[NDArray, NDArray]:
        return stacked(names, target, pool.y), pool.stacked(names)[models]

    logs, odds, norms = of("log probability"), of("log odds"), of("gradient norms")
    population = reference.Population(logs[0][0, apart], logs[1][:, 0, apart], seen[:, apart])
    whole = tuple(-0.5 * np.logaddexp.reduce(-2 * v, axis=-2, keepdims=True) for v in norms)
    plain: dict[str, tuple[Score, tuple[NDArray, ...]]] = {
        "LiRA": (reference.lira, odds),
        "LiRA, own variance": (partial(reference.lira, variance="own"), odds),
        "log-ratio": (reference.log_ratio, logs),
        "RMIA": (partial(reference.rmia, population=population), logs),
        "BaVarIA": (reference.bavaria, odds),
        "LiRA, gradient norm": (reference.lira, whole),
        "LiRA, first layer's norm": (reference.lira, norms),
        "LiRA, levels taken out": (lira_without_levels, odds),
    }
    found, seconds = {"loss": logs[0][0, held]}, {"loss": 0.0}
    for name, (score, (mine, theirs)) in plain.items():
        start = time.perf_counter()
        found[name] = score(mine[0, held], theirs[:, 0, held], seen[:, held])
        seconds[name] = time.perf_counter() - start
    for name, names in ABLATIONS[config.data].items():
        if not config.ablations and names != STANDARD:
            continue
        mine, theirs = of(*names)
        start = time.perf_counter()
        scores = reference.calibrated_inference(key, mine, theirs, seen)
        seconds[f"calibrated: {name}"] = time.perf_counter() - start
        found[f"calibrated: {name}"] = scores[held]
    if config.k != 32:
        return Attacked(found, is_member[held], seconds)
    mine, theirs = of(*STANDARD)
    start = time.perf_counter()
    offline = reference.learn(key, theirs, seen, online=False)
    found["calibrated, offline"] = offline.scores(mine, theirs, seen)[held]
    seconds["calibrated, offline"] = time.perf_counter() - start
    return Attacked(found, is_member[held], seconds)


def lira_without_levels(observed: NDArray, references: NDArray, was_member: NDArray) -> NDArray:
    """LiRA, the target's level taken out first as the calibrated attack does."""
    features = reference.calibrate(observed, references, was_member)
    return features[:, 0, reference.ONLINE.index("log-ratio, shared variances")]


# --- Runs -----------------------------------------------------------------------------------------


def place_of(config: Config, store: Path) -> Path:
    """The pool's folder."""
    return store / config.study / f"{config.data}-{config.pool}-{config.seed}"


def sweep(config: Config, store: Path) -> None:
    """Attacks the targets of a run, those that were not attacked before, and writes what came."""
    pool: Pool | None = None
    for path, target, models in todo(config, store):
        if path.exists():
            continue
        pool = pool or pool_of(config, place_of(config, store))
        signals = jax.tree.map(lambda leaf, at=target: leaf[at], pool.signals)
        write(path, attacked(signals, pool.was_member[target], pool, models, config))


def todo(config: Config, store: Path) -> Iterator[tuple[Path, int, NDArray]]:
    """File, target and its reference models: pairs that follow the target's."""
    for i in range(config.targets):
        pair = i * (config.pool // 2) // config.targets
        models = np.arange(2 * pair + 2, 2 * pair + 2 + config.k) % config.pool
        name = f"{2 * pair + i % 2}{'-ablations' if config.ablations else ''}.npz"
        yield place_of(config, store) / f"k{config.k}" / name, 2 * pair + i % 2, models


def write(path: Path, came: Attacked) -> None:
    """Keeps what came of a target, and says the most important of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    arrays: dict[str, Any] = {f"scores/{name}": score for name, score in came.scores.items()}
    np.savez(temporary, is_member=came.is_member, seconds=json.dumps(came.seconds), **arrays)
    temporary.rename(path)
    results = came.results
    said = ", ".join(f"{name} {results[name].auc:.3f}" for name in ("LiRA", STANDARD_NAME))
    print(f"{path.parent.parent.name}/{path.parent.name}/{path.stem}: {said}", flush=True)


def read(path: Path) -> Attacked:
    """What `write` kept."""
    with np.load(path, allow_pickle=False) as file:
        scores = {name[7:]: file[name] for name in file.files if name.startswith("scores/")}
        return Attacked(scores, file["is_member"], json.loads(str(file["seconds"])))


def sweep_unlike(store: Path, base: Config) -> None:
    """Attacks Location-30 targets that were trained otherwise than their reference models."""
    config = replace(base, data="location30", k=32)
    folder = place_of(config, store) / "unlike"
    missing = [name for name in UNLIKE if not (folder / f"{name}.npz").exists()]
    if not missing:
        return
    kind, pool = kind_of("location30"), pool_of(config, place_of(config, store))
    records = jm.Records(kind.x, kind.y, np.zeros(len(kind.y), bool))
    spec = everything_of(kind)
    for i, name in enumerate(missing):
        change, members = UNLIKE[name]
        rank = np.random.default_rng((base.seed, i)).permutation(len(kind.y))
        seen = np.stack([rank < members, rank >= members])  # only the first is looked at
        recipe = replace(kind.recipe, **change).recipe()
        key = jax.random.fold_in(jax.random.key(base.seed), i)
        models = shadow.train(key, kind.architecture, kind.x, kind.y, seen, recipe)
        signals = jm.extract(shadow.model(models, 0), records, spec)
        came = attacked(signals, seen[0], pool, np.arange(config.k), config)
        write(folder / f"{name}.npz", came)


# --- Tables ---------------------------------------------------------------------------------------


def table(config: Config, store: Path) -> str:
    """Markdown: every attack of a run, means over targets."""
    came = [read(path) for path, *_ in todo(config, store) if path.exists()]
    if not came:
        return ""
    results = [one.results for one in came]
    named = max(NAMED, key=lambda name: np.mean([one[name].auc for one in results]))
    lines = [
        f"\n{config.data}, k = {config.k}, {len(came)} targets; best of the others: {named}\n",
        "| attack | AUC | TPR at 1% FPR (%) | TPR at 0.1% FPR (%) | AUC over LiRA | lowest | "
        f"AUC over {named} | lowest | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in results[0]:
        auc = np.array([one[name].auc for one in results])
        rates = [100 * np.mean([one[name].tpr_at(fpr) for one in results]) for fpr in (0.01, 0.001)]
        cells = [f"{auc.mean():.3f} ({auc.std(ddof=1):.3f})", *(f"{rate:.1f}" for rate in rates)]
        for other in ("LiRA", named):
            differences = [one[name].auc_difference(one[other]) for one in results]
            mean = np.mean([d.value for d in differences])
            # As if all targets had the same luck with their records, which they share.
            half = np.mean([(d.high - d.low) / 2 for d in differences])
            cells.append(f"{mean:+.3f} ± {half:.3f}")
            cells.append(f"{min(d.value for d in differences):+.3f}")
        cells.append(f"{np.mean([one.seconds[name] for one in came]):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    spent = json.loads((place_of(config, store) / "seconds.json").read_text("utf-8"))
    lines.append(
        f"\nSeconds for a model: its logits {spent['logits']:.2f}; logits, gradient norms and "
        f"alignment {spent['white']:.2f}."
    )
    pool = pool_of(config, place_of(config, store))
    right = pool.signals.logits.argmax(-1) == pool.y
    inside, outside = (right[mask].mean() for mask in (pool.was_member, ~pool.was_member))
    lines.append(f"Accuracy of the models: {inside:.3f} on members, {outside:.3f} on others.")
    return "\n".join(lines)


def unlike_table(store: Path, base: Config) -> str:
    """Markdown: targets that were trained otherwise."""
    folder = place_of(replace(base, data="location30"), store) / "unlike"
    lines = [
        "\nlocation30, k = 32, targets trained otherwise; AUC (TPR at 0.1% FPR in %)\n",
        f"| target | {' | '.join(SHOWN)} |",
        f"|---|{'---:|' * len(SHOWN)}",
    ]
    for name in UNLIKE:
        if (folder / f"{name}.npz").exists():
            results = read(folder / f"{name}.npz").results
            cells = [f"{results[a].auc:.3f} ({100 * results[a].tpr_at(0.001):.1f})" for a in SHOWN]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sweep", "table"))
    parser.add_argument("--store", type=Path, default=Path("jaxmeter-store"))
    parser.add_argument("--data", nargs="+", choices=AXES["data"], default=AXES["data"])
    parser.add_argument("--k", nargs="+", type=int, default=AXES["k"])
    parser.add_argument("--pool", type=int, default=BASE.pool, help="models of each data set")
    parser.add_argument("--targets", type=int, default=BASE.targets)
    given = parser.parse_args(arguments)
    base = replace(BASE, pool=given.pool, targets=given.targets)
    runs = [
        replace(base, data=data, k=k, ablations=k == 32) for data in given.data for k in given.k
    ]
    too_many = [config.k for config in runs if config.k > config.pool - 2]
    if too_many:
        raise SystemExit(f"k = {too_many[0]} needs a pool of {too_many[0] + 2} models or more.")
    for config in runs:
        if given.what == "sweep":
            sweep(config, given.store)
        print(table(config, given.store))
    if "location30" in given.data and 32 in given.k:
        if given.what == "sweep":
            sweep_unlike(given.store, base)
        print(unlike_table(given.store, base))


if __name__ == "__main__":
    main()
