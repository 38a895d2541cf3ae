"""What reference models say a record's signals should be, as features for a network to read.

For every record and signal the other models' statistics, those that saw the record and those that
did not, say where its signal lies between the two. A reference model can be looked at in the same
way if it is left out of its own statistics; it is known what it was trained on, so that it teaches
what members look like. Sums over all models less a model's own terms give every model's statistics
at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmeter.metrics import AttackResult, evaluate
from jaxmeter.reference.inputs import bridged, chosen, membership
from jaxmeter.reference.leave_one_out import companions

ONLINE = (
    "signal",
    "over IN",
    "over OUT",
    "IN over OUT",
    "log-ratio, shared variances",
    "log-ratio, own variances",
    "log sd IN",
    "log sd OUT",
)
OFFLINE = ("signal", "over OUT", "over OUT, own variance", "log sd OUT")
_PRIOR = 4.0  # models that a record's own variance is mixed with the shared one by
_TINY = 1e-12


class _Moments(NamedTuple):
    """Of one side's models: how many `[n]`; sums `[s, n]` about an origin of each record."""

    models: NDArray
    total: NDArray
    squares: NDArray

    def without(self, other: "_Moments") -> "_Moments":
        return _Moments(*(a - b for a, b in zip(self, other, strict=True)))


class Statistics(NamedTuple):
    """What some models say of n records.

    Attributes:
      means: of models that saw the record and of those that did not, `[2, s, n]`.
      own: variances, each record's mixed with the shared one, `[2, s, n]`.
      shared: variances of a side, from residuals about each record's mean, `[2, s]`.
      models: how many there are, `[2, n]`.
    """

    means: NDArray
    own: NDArray
    shared: NDArray
    models: NDArray


def calibrate(
    observed: ArrayLike,
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    models: ArrayLike | None = None,
    online: bool = True,
) -> NDArray:
    """Features of each record's signals, calibrated by reference models; float64 `[n, s, c]`.

    Columns are named by `ONLINE` (c = 8) or `OFFLINE` (c = 4). Differences are in standard
    deviations of a side's models, predictive ones (variances times `1 + 1 / models`), so that
    features from few and from many models can be compared. A model's own level is taken out first:
    from every signal the mean over records of its distance from the middle of both sides (offline:
    from the models that did not see the record), so that a target that is surer of everything than
    the models does not look as if it knew everything. So features depend on which records are
    looked at together.

    Args:
      observed: the target's signals, `[s, n]`, or one, `[n]`.
      references: the same of k reference models, `[k, s, n]` or `[k, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      models: indices of the reference models to use; None for all.
      online: whether models that saw a record are used too.

    Raises:
      ValueError: if shapes do not fit, a value is not finite, or no record has models on a side.

    >>> s, m = [[2.0], [2.2], [0.0], [0.2]], [[True], [True], [False], [False]]
    >>> calibrate([2.0], s, m).shape
    (1, 1, 8)
    """
    signals, seen = _signals(references, was_member)
    found = np.asarray(observed, np.float64)
    if found.shape != signals.shape[1:] and found.shape != (signals.shape[2],):
        raise ValueError(
            f"observed has the shape {found.shape}, references {np.shape(references)}; they must "
            "be [n] and [k, n], or [s, n] and [k, s, n], of the same records in the same order."
        )
    found = found.reshape(signals.shape[1:])
    if not np.isfinite(found).all():
        raise ValueError(
            f"what was observed of {(~np.isfinite(found)).any(axis=0).sum()} records is not "
            "finite. Leave them out, or use statistics of logits that do not overflow "
            "(jaxmeter.logits)."
        )
    use = chosen(models, len(signals))
    origin = signals[use].mean(axis=0)
    moments = _moments(signals[use] - origin, seen[use])
    return _features(found - origin, origin, _statistics(moments, online=online), online=online)


def separation(features: NDArray, *, online: bool = True) -> NDArray:
    """The one column of features `[n, s, c]` that ranks members by itself, `[n, s]`.

    The log-likelihood ratio with shared variances; offline, how far a signal is above what models
    say that did not see the record.
    """
    names = ONLINE if online else OFFLINE
    return features[..., names.index("log-ratio, shared variances" if online else "over OUT")]


def calibrate_left_out(
    references: ArrayLike,
    was_member: ArrayLike,
    *,
    pairs: ArrayLike | None = None,
    online: bool = True,
) -> NDArray:
    """`calibrate` of each model by the others, float64 `[k, n, s, c]`.

    Complementary models are left out together: where every record is in half of the models, how
    many of the others saw it would give away whether the one left out did.

    Args:
      references: signals of k reference models, `[k, s, n]` or `[k, n]`; never changed.
      was_member: whether model k was trained on record n, bool `[k, n]`.
      pairs: models to leave out together, int `[p, 2]`; None to look for complements.
      online: as in `calibrate`.

    Raises:
      ValueError: as `calibrate`, or if nothing is left of the models without a pair.

    >>> s, m = [[2.0], [2.2], [0.0], [0.2]], [[True], [True], [False], [False]]
    >>> calibrate_left_out(s, m, pairs=[[0, 2], [1, 3]]).shape
    (4, 1, 1, 8)
    """
    signals, seen = _signals(references, was_member)
    origin = signals.mean(axis=0)
    centred = signals - origin
    every = _moments(centred, seen)
    found: list[NDArray | None] = [None] * len(signals)
    for group in _groups(seen, pairs):
        own = _moments(centred[group], seen[group])
        left = tuple(a.without(b) for a, b in zip(every, own, strict=True))
        statistics = _statistics(left, online=online)
        for model in group:
            found[model] = _features(centred[model], origin, statistics, online=online)
    return np.stack([features for features in found if features is not None])


def count_leak(was_member: ArrayLike, *, pairs: ArrayLike | None = None) -> AttackResult:
    """How well the number of other models that saw a record says whether the left-out one did.

    An AUC whose interval contains 0.5 is as it should be; see `calibrate_left_out`. Cells of all
    models are taken together, in each the fewer of the others saw the record the higher the score.

    Args:
      was_member: whether model k was trained on record n, bool `[k, n]`.
      pairs: models that are left out together, int `[p, 2]`; None to look for complements.

    >>> m = np.array([[True, True, False, False], [True, False, True, False]])
    >>> count_leak(np.concatenate([m, ~m])).auc  # two complementary pairs
    0.5
    >>> count_leak(np.concatenate([m, ~m]), pairs=[]).auc  # each model by itself
    1.0
    """
    _, seen = membership(was_member, was_member)
    counts = seen.sum(axis=0)
    scores = np.empty(seen.shape)
    for group in _groups(seen, pairs):
        scores[group] = seen[group].sum(axis=0) - counts
    return evaluate(scores.ravel(), seen.ravel())


def disjoint_groups(was_member: NDArray, pairs: ArrayLike | None) -> list[list[int]]:
    """Models that are left out together, each in one group.

    Raises:
      ValueError: if that would give away what they were trained on.
    """
    groups = _groups(was_member, pairs)
    counts = was_member.sum(axis=0)
    if np.ptp(counts) == 0 and any(np.ptp(was_member[group].sum(axis=0)) for group in groups):
        raise ValueError(
            f"every record was seen by exactly {counts[0]} of {len(was_member)} models, and not "
            "all are left out with a complement. How many others saw a record then gives away "
            "whether a left-out model did, and an attack would learn that. Draw members in "
            "complementary pairs (jaxmeter.shadow.balanced_membership) or independently."
        )
    return groups


def _groups(was_member: NDArray, pairs: ArrayLike | None) -> list[list[int]]:
    unique: list[list[int]] = []
    for group in companions(was_member, pairs):
        if group not in unique:
            unique.append(group)
    if sum(map(len, unique)) != len(was_member):
        raise ValueError("a model is in more than one pair; give disjoint pairs.")
    return unique


def _signals(references: ArrayLike, was_member: ArrayLike) -> tuple[NDArray, NDArray]:
    """Float64 `[k, s, n]` and membership; ValueError for what does not fit or is not finite."""
    values, seen = membership(references, was_member)
    if values.ndim not in (2, 3) or values.shape[-1] != seen.shape[1]:
        raise ValueError(
            f"references have the shape {values.shape} and was_member {seen.shape}; references "
            "must be [k, n], or [k, s, n] for s signals."
        )
    signals = values.astype(np.float64).reshape(len(values), -1, seen.shape[1])
    if not np.isfinite(signals).all():
        model, signal, record = np.argwhere(~np.isfinite(signals))[0]
        raise ValueError(
            f"signal {signal} of reference model {model} for record {record} is "
            f"{signals[model, signal, record]}; leave the model or the record out, or use "
            "statistics of logits that do not overflow (jaxmeter.logits)."
        )
    return signals, seen


def _moments(centred: NDArray, seen: NDArray) -> tuple[_Moments, _Moments]:
    """Of the models that saw each record, and of the others."""
    found = []
    for mask in (seen, ~seen):
        weight = mask.astype(np.float64)
        total = np.einsum("ksn,kn->sn", centred, weight)
        found.append(
            _Moments(weight.sum(0), total, np.einsum("ksn,ksn,kn->sn", centred, centred, weight))
        )
    return found[0], found[1]


def _statistics(moments: Sequence[_Moments], *, online: bool) -> Statistics:
    """Means and variances; what some records lack is made up for as `inputs.bridged` says."""
    means, residuals, freedom = [], [], []
    for side in moments:
        mean = side.total / np.maximum(side.models, 1)
        means.append(mean)
        residuals.append(np.maximum(side.squares - side.models * mean**2, 0))
        freedom.append(np.maximum(side.models - 1, 0))
    has = [side.models > 0 for side in moments]
    for name, there in zip(("saw", "did not see"), has, strict=True):
        if (online or name == "did not see") and not there.any():
            raise ValueError(
                f"no reference model that is left {name} any of the records. "
                + (
                    "Offline attacks (online=False) need none that did."
                    if name == "saw"
                    else "Give models that were trained without them."
                )
            )
    if has[0].any() and has[1].any():
        means = list(bridged(*means, *has))
    shared = np.stack([_shared(r, f, means) for r, f in zip(residuals, freedom, strict=True)])
    own = np.stack(
        [(_PRIOR * shared[i][:, None] + residuals[i]) / (_PRIOR + freedom[i]) for i in range(2)]
    )
    return Statistics(np.stack(means), own, shared, np.stack([side.models for side in moments]))


def _shared(residuals: NDArray, freedom: NDArray, means: Sequence[NDArray]) -> NDArray:
    """A side's variance `[s]`.

    With one model a side there are no residuals: then it is half the variance of the sides'
    difference over records, which is at least that of the models.
    """
    if freedom.any():
        found = residuals.sum(axis=1) / freedom.sum()
    else:
        found = 0.5 * np.var(means[0] - means[1], axis=1)
    return np.where(found > _TINY, found, 1.0)


def _features(centred: NDArray, origin: NDArray, of: Statistics, *, online: bool) -> NDArray:
    """Features `[n, s, c]` of one model's signals `[s, n]`, which are given about the origin."""
    more = 1 + 1 / np.maximum(of.models, 1)  # a mean of few models is uncertain itself
    shared, own = of.shared[:, :, None] * more[:, None], of.own * more[:, None]
    if not online:
        level = (centred - of.means[1]).mean(axis=1, keepdims=True)
        apart = centred - level - of.means[1]
        columns = [
            centred - level + origin,
            apart / np.sqrt(shared[1]),
            apart / np.sqrt(own[1]),
            0.5 * np.log(own[1]),
        ]
        return np.stack([column.T for column in columns], axis=-1)
    level = (centred - of.means.mean(axis=0)).mean(axis=1, keepdims=True)
    seen, unseen = (centred - level) - of.means
    columns = [
        centred - level + origin,
        seen / np.sqrt(shared[0]),
        unseen / np.sqrt(shared[1]),
        (of.means[0] - of.means[1]) / np.sqrt(shared.mean(axis=0)),
        _log_ratio(seen, unseen, shared),
        _log_ratio(seen, unseen, own),
        *(0.5 * np.log(own)),
    ]
    return np.stack([column.T for column in columns], axis=-1)


def _log_ratio(seen: NDArray, unseen: NDArray, variances: NDArray) -> NDArray:
    """Of normal densities."""
    inside, outside = (
        0.5 * (residual**2 / variance + np.log(variance))
        for residual, variance in zip((seen, unseen), variances, strict=True)
    )
    return outside - inside
