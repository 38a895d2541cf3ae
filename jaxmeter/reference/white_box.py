"""The calibrated attack: a network that learns from reference models how to read a target.

What it learns from is what reference models say of each other: for each of them, it is known which
records it was trained on. No member of the target is known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxmeter.metrics import AttackResult
from jaxmeter.reference.calibration import (
    ONLINE,
    calibrate,
    calibrate_left_out,
    disjoint_groups,
    separation,
)
from jaxmeter.reference.inputs import membership
from jaxmeter.reference.networks import Network, NetworkConfig, fitted, logistic

CONFIG = NetworkConfig(steps=1000, batch_size=512)
FOLDS = 5
_FEWEST = 4  # groups of models for a cross-validation; a fold's network is fitted on three or more
_MOST = 2**28  # numbers of features that are fitted on; of more records a part is drawn


class Calibrated(NamedTuple):
    """What was learned from reference models; `scores` applies it to a target.

    Attributes:
      networks: one a fold, of whose models it has seen nothing; of fewer than four pairs, one a
        pair, fitted on its cells alone, since statistics of so few others would tell their labels.
      online: whether models that saw a record are used.
      left_out: scores of each reference model's records as if it were the target, `[k, n]`: by the
        network and the statistics of the models outside its fold. None where there are too few
        models for a cross-validation (less than four pairs).
      uses_networks: False where they rank members of left-out models no better than the
        log-likelihood ratio of the first signal does (LiRA, or one-sided offline); then that is the
        score.
    """

    networks: tuple[Network, ...]
    online: bool
    left_out: NDArray | None
    uses_networks: bool

    def scores(
        self,
        observed: ArrayLike,
        references: ArrayLike,
        was_member: ArrayLike,
        *,
        models: ArrayLike | None = None,
    ) -> NDArray:
        """The mean membership logit of the networks, float64 `[n]`; arguments as `calibrate`.

        The records may be others than those learned from.
        """
        features = calibrate(observed, references, was_member, models=models, online=self.online)
        if not self.uses_networks:
            return _baseline(features, self.online)
        flat = _flat(features)
        return np.mean([network(flat)[:, 0] for network in self.networks], axis=0)


def learn(
    key: Array,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    pairs: ArrayLike | None = None,
    online: bool = True,
    config: NetworkConfig | None = None,
    folds: int = FOLDS,
) -> Calibrated:
    """Fits networks on reference models' calibrated signals, and tells what they would find.

    Every reference model in turn is looked at as if it were the target, by the statistics of the
    others, less its complement (`calibrate_left_out`). Networks are fitted to tell the records it
    was trained on. Cross-validation goes by models, complementary ones together, and a fold's
    models are in nothing that its network is fitted on: not among the cells, nor in the statistics
    of the others' cells, whose labels would give theirs away.

    Args:
      key: PRNG key, consumed.
      references: signals of k reference models, `[k, s, n]` or `[k, n]`, the log-odds first; never
        changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      pairs: models to leave out together, int `[p, 2]`; None to look for complements.
      online: False to use no model that saw a record, for targets whose records none of them saw.
      config: the network; None for the default one.
      folds: of the cross-validation; at most as many as there are pairs.

    Raises:
      ValueError: if shapes do not fit, a value is not finite, there are fewer than two pairs (or
        three models without pairs), or the number of models that saw a record would give away what
        a left-out model was trained on.

    >>> random = np.random.default_rng(0)
    >>> half = random.random((4, 300)) < 0.5
    >>> m = np.concatenate([half, ~half])
    >>> s = random.normal(size=(8, 2, 300)) + 3 * m[:, None]
    >>> found = learn(jax.random.key(0), s, m, config=NetworkConfig(steps=100))
    >>> bool(AttackResult(scores=found.left_out[0], is_member=m[0]).auc > 0.95)
    True
    """
    values, seen = membership(references, was_member)
    groups = disjoint_groups(seen, pairs)
    if len(groups) < 2 or len(seen) < 3:
        raise ValueError(
            f"{len(seen)} reference models in {len(groups)} groups that are left out together: "
            "nothing is left to compare a left-out model with. Give at least two complementary "
            "pairs, better eight."
        )
    part, networks = _part(key, seen, values), []
    together = np.array([group for group in groups if len(group) == 2], int).reshape(-1, 2)
    if len(groups) < _FEWEST:
        features = calibrate_left_out(values, seen, pairs=together, online=online)
        for i, group in enumerate(groups):
            own = features[group], seen[group]
            networks.append(_fitted(jax.random.fold_in(key, i), *own, part, config))
        return Calibrated(tuple(networks), online, None, True)
    left_out, baseline = np.empty(seen.shape), np.empty(seen.shape)
    for i, fold in enumerate(_folds(groups, folds)):
        rest = np.setdiff1d(np.arange(len(seen)), fold)
        theirs, known = values[rest], seen[rest]
        features = calibrate_left_out(theirs, known, pairs=_among(rest, together), online=online)
        network = _fitted(jax.random.fold_in(key, i), features, known, part, config)
        for model in fold:
            found = calibrate(values[model], theirs, known, online=online)
            left_out[model] = network(_flat(found))[:, 0]
            baseline[model] = _baseline(found, online)
        networks.append(network)
    better = _mean_auc(left_out, seen) > _mean_auc(baseline, seen)
    return Calibrated(tuple(networks), online, left_out if better else baseline, bool(better))


def calibrated_inference(
    key: Array,
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    pairs: ArrayLike | None = None,
    config: NetworkConfig | None = None,
    models: ArrayLike | None = None,
) -> NDArray:
    """The calibrated attack, online: `learn` from the models and score the target, float64 `[n]`.

    Args:
      key: PRNG key, consumed.
      observed: the target's signals, `[s, n]` or one `[n]`, the log-odds first: `logits.log_odds`,
        gradient norms in logs, `Signals.scalars`, queries of changed records.
      references: the same of k reference models, `[k, s, n]` or `[k, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      pairs: as `learn`, counted among all k models.
      config: the network; None for the default one.
      models: indices of the reference models to use; None for all.

    Errors: as `learn`.

    >>> random = np.random.default_rng(0)
    >>> half = random.random((4, 300)) < 0.5
    >>> m = np.concatenate([half, ~half])
    >>> s = random.normal(size=(8, 300)) + 4 * m
    >>> quick = NetworkConfig(steps=100)
    >>> scores = calibrated_inference(jax.random.key(0), s[0], s[2:], m[2:], config=quick)
    >>> bool(AttackResult(scores=scores, is_member=m[0]).auc > 0.95)
    True
    """
    values, seen = membership(references, was_member)
    if models is not None:
        use = np.atleast_1d(np.asarray(models))
        values, seen, pairs = values[use], seen[use], _among(use, pairs)
    return learn(key, values, seen, pairs=pairs, config=config).scores(observed, values, seen)


def supervised(
    key: Array,
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    is_member: ArrayLike,
    *,
    known: ArrayLike | None = None,
    pairs: ArrayLike | None = None,
    config: NetworkConfig | None = None,
    folds: int = FOLDS,
) -> NDArray:
    """The calibrated attack that knows members of the target too, cross-fitted; float64 `[n]`.

    In each fold, a network is fitted on the reference models' cells and on those of the target's
    known records outside the fold, half of every batch from each. A known record is scored by the
    network of its fold, the others by all of them.

    Args:
      key: PRNG key, consumed.
      observed: as in `calibrated_inference`.
      references: likewise.
      was_member: likewise.
      is_member: whether the target was trained on record n, bool `[n]`; looked at where known.
      known: of which records that is known, bool `[n]`; None for all.
      pairs: as in `calibrated_inference`.
      config: likewise.
      folds: parts of the known records.

    Raises:
      ValueError: as `learn`, or for membership that does not fit.
    """
    values, seen = membership(references, was_member)
    truth, n = np.asarray(is_member), seen.shape[1]
    is_known = np.ones(n, bool) if known is None else np.asarray(known)
    for name, mask in (("is_member", truth), ("known", is_known)):
        if mask.shape != (n,) or mask.dtype != bool:
            raise ValueError(f"{name} is {mask.dtype} {mask.shape}; it must be bool [{n}].")
    if is_known.sum() < folds:
        raise ValueError(f"{is_known.sum()} known records are too few for {folds} folds.")
    disjoint_groups(seen, pairs)
    theirs = calibrate_left_out(values, seen, pairs=pairs)
    mine = _flat(calibrate(observed, values, seen))
    part = _part(key, seen, values)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    place = np.full(n, -1)
    place[is_known] = random.permutation(np.arange(is_known.sum()) % folds)
    found = np.zeros(n)
    for fold in range(folds):
        others = is_known & (place != fold)
        own = (mine[others], truth[others])
        network = _fitted(jax.random.fold_in(key, fold), theirs, seen, part, config, own)
        scores = network(mine)[:, 0]
        found += np.where(place == fold, scores, np.where(is_known, 0, scores / folds))
    return found


def _fitted(
    key: Array,
    features: NDArray,
    seen: NDArray,
    part: NDArray,
    config: NetworkConfig | None,
    own: tuple[NDArray, NDArray] | None = None,
) -> Network:
    """A network fitted on the models' cells of some records, and on `own` features and truth."""

    def draw(random: np.random.Generator, size: int) -> tuple[NDArray, NDArray]:
        at, records = random.integers(len(seen), size=size), random.choice(part, size)
        x, truth = _flat(features[at, records]), seen[at, records]
        if own is not None:
            half = size // 2
            rows = random.integers(len(own[1]), size=half)
            x[:half], truth[:half] = own[0][rows], own[1][rows]
            order = random.permutation(size)
            x, truth = x[order], truth[order]
        return x, truth

    return fitted(key, draw, logistic, outputs=1, config=config or CONFIG)


def _part(key: Array, seen: NDArray, values: NDArray) -> NDArray:
    """Records to fit on: all, or as many as memory is meant for."""
    k, n = seen.shape
    signals = values.shape[1] if values.ndim == 3 else 1
    most = max(1000, _MOST // (k * signals * len(ONLINE)))
    if n <= most:
        return np.arange(n)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return np.sort(random.permutation(n)[:most])


def _folds(groups: Sequence[Sequence[int]], folds: int) -> list[NDArray]:
    """Models of each fold; groups are dealt in turn."""
    count = min(folds, len(groups))
    return [np.sort(np.concatenate(groups[i::count])) for i in range(count)]


def _among(use: NDArray, pairs: ArrayLike | None) -> NDArray | None:
    """Pairs counted among the models in use; those that lack one are left out."""
    if pairs is None:
        return None
    place = {int(model): i for i, model in enumerate(use)}
    every = np.asarray(pairs, int).reshape(-1, 2).tolist()
    both = [(place[a], place[b]) for a, b in every if a in place and b in place]
    return np.array(both, int).reshape(-1, 2)


def _baseline(features: NDArray, online: bool) -> NDArray:
    """The first signal's ratio, of features `[n, s, c]`."""
    return separation(features, online=online)[:, 0]


def _flat(features: NDArray) -> NDArray:
    return features.reshape(len(features), -1).astype(np.float32)


def _mean_auc(scores: NDArray, seen: NDArray) -> float:
    """Over models that have members and others."""
    able = np.flatnonzero(seen.any(axis=1) & ~seen.all(axis=1))
    return float(np.mean([AttackResult(scores=scores[i], is_member=seen[i]).auc for i in able]))
