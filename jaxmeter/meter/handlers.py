"""The data of an attack as ML Privacy Meter's handlers hold them."""

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxmeter.data.privacy_meter import known_among, read_privacy_meter
from jaxmeter.data.records import DataWarning, Records, content_ids


class AttackerRecords(NamedTuple):
    """Records as the files have them, dealt for an attack.

    Attributes:
      known: members and non-members that the attacker knows.
      test: the others, which the attack is measured on.
    """

    known: Records
    test: Records


class attack_data:  # noqa: N801 (that tool's name)
    """Records of known and of unknown membership, from ML Privacy Meter's files.

    The first `attack_percentage` percent of the members, and as many non-members at random, are
    known to the attacker; all the others are for the test. A record with the numbers and the label
    of a member is no non-member, however it is spelt, and copies of one record never lie on both
    sides.

    Args:
      dataset_path: the text of all records, see `read_privacy_meter`.
      member_dataset_path: the `.npy` of the rows that the target was trained on.
      batch_size: members in a step of fitting, beside as many non-members.
      attack_percentage: the share of the members that the attacker knows, in percent.
      normalization: whether the target takes `(x / 255 - means) / stddevs`, channel by channel.
      input_shape: shape of one record, channels last; None for vectors and square images.
      seed: which non-members are known.

    Attributes:
      means: of `x / 255`, one a channel; of the members' records unless set.
      stddevs: standard deviations likewise.

    Raises:
      FileNotFoundError, ValueError: as `read_privacy_meter`; or if a setting makes no sense.
    """

    def __init__(  # noqa: D107
        self,
        dataset_path: str | PathLike[str],
        member_dataset_path: str | PathLike[str],
        batch_size: int,
        attack_percentage: float,
        normalization: bool = False,
        input_shape: Sequence[int] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        records = read_privacy_meter(dataset_path, member_dataset_path, input_shape)
        self._set(records, batch_size, attack_percentage, normalization, seed)

    def _set(
        self, records: Records, batch_size: int, percentage: float, normalization: bool, seed: int
    ) -> None:
        if int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if not 0 < percentage < 100:
            raise ValueError(
                f"attack_percentage is {percentage}; it is the share of the members that the "
                "attacker knows, in percent: above 0, and below 100 so that some are left to test."
            )
        members, others = int(records.is_member.sum()), int((~records.is_member).sum())
        if not members or not others:
            raise ValueError(
                f"there are {members} members and {others} non-members; an attack tells one from "
                "the other and needs both. A data set whose rows are all members has none to spare."
            )
        self.records = records
        self.batch_size = int(batch_size)
        self.attack_percentage = percentage
        self.attack_size = int(percentage / 100 * members)
        self.normalization = bool(normalization)
        self.input_shape = records.x.shape[1:]
        self.seed = seed
        self._means: NDArray | None = None
        self._stddevs: NDArray | None = None

    @property
    def means(self) -> NDArray:
        """Means of `x / 255`, one a channel (of a vector, one a feature)."""
        return self._moments()[0] if self._means is None else self._means

    @means.setter
    def means(self, values: ArrayLike) -> None:
        self._means = self._one_a_channel(values, "means")

    @property
    def stddevs(self) -> NDArray:
        """Standard deviations of `x / 255` likewise; 1 where it is constant."""
        return self._moments()[1] if self._stddevs is None else self._stddevs

    @stddevs.setter
    def stddevs(self, values: ArrayLike) -> None:
        given = self._one_a_channel(values, "stddevs")
        if not (given > 0).all():
            raise ValueError(f"stddevs are {given.tolist()}; every one must be above 0.")
        self._stddevs = given

    def normalize(self, x: NDArray) -> NDArray:
        """Records as the target takes them: float32, normalised if so asked for."""
        if not self.normalization:
            return np.asarray(x, np.float32)
        channel = (1,) * (x.ndim - 1) + (-1,)
        means, stddevs = (np.float32(part).reshape(channel) for part in (self.means, self.stddevs))
        return (np.asarray(x, np.float32) / np.float32(255) - means) / stddevs

    def prepared(self, records: Records) -> Records:
        """Records with `x` as the target takes it."""
        return records._replace(x=self.normalize(records.x))

    def dealt(self) -> AttackerRecords:
        """Known and test records, without a common content.

        Warns where there are fewer non-members than members: nothing is cut to fit.

        Raises:
          ValueError: if a part would have fewer than two members or two non-members.
        """
        is_member = self.records.is_member
        members, others = np.flatnonzero(is_member), np.flatnonzero(~is_member)
        order = np.asarray(jax.random.permutation(jax.random.key(self.seed), others.size))
        content = content_ids(self.records.x)
        known_members = members[: self.attack_size]
        # A non-member whose x a member has, under another label, is nobody's: it says nothing.
        clean = others[order][~np.isin(content[others[order]], content[members])]
        known_others = clean[: self.attack_size]
        known = np.concatenate([known_members, known_others])
        taken = np.isin(content, content[known])
        test = np.concatenate([members[~taken[members]], np.sort(clean[~taken[clean]])])
        dealt = AttackerRecords(self.records.rows(known), self.records.rows(test))
        self._check(dealt)
        return dealt

    def _check(self, dealt: AttackerRecords) -> None:
        for name, part in zip(("known", "test"), dealt, strict=True):
            inside = int(part.is_member.sum())
            outside = len(part.y) - inside
            if min(inside, outside) < 2:
                raise ValueError(
                    f"the {name} records are {inside} members and {outside} non-members; at least "
                    "2 of each are needed, and hundreds to measure anything well. Change "
                    "attack_percentage, or give a data set with more records that are no members."
                )
            if outside < inside:
                warnings.warn(
                    f"there are only {outside} non-members for {inside} members among the {name} "
                    "records. All are used; false positive rates below "
                    f"1/{outside} cannot be measured.",
                    DataWarning,
                    stacklevel=4,
                )

    def _moments(self) -> tuple[NDArray, NDArray]:
        x = self.records.x[self.records.is_member]
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes, dtype=np.float64) / 255
        spread = x.std(axis=axes, dtype=np.float64) / 255
        return mean, np.where(spread > 0, spread, 1.0)

    def _one_a_channel(self, values: ArrayLike, what: str) -> NDArray:
        given = np.atleast_1d(np.asarray(values, np.float64))
        channels = self.input_shape[-1]
        if given.shape not in ((channels,), (1,)) or not np.isfinite(given).all():
            raise ValueError(
                f"{what} have shape {given.shape}; there are {channels} channels, and each has one."
            )
        return np.broadcast_to(given, (channels,))


class AttackData(attack_data):
    """The same from arrays, as later scripts of that tool have it.

    Args:
      x_population: records, members among them `[n, ...]`.
      y_population: their labels `[n]`.
      x_target_train: the members `[m, ...]`.
      y_target_train: their labels `[m]`.
      batch_size: as in `attack_data`, and so are the others.
      attack_percentage: see there.
      normalization: see there.
      input_shape: checked against the records if given.
      seed: see there.
    """

    def __init__(  # noqa: D107
        self,
        x_population: ArrayLike,
        y_population: ArrayLike,
        x_target_train: ArrayLike,
        y_target_train: ArrayLike,
        batch_size: int,
        attack_percentage: float,
        normalization: bool = False,
        input_shape: Sequence[int] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        everyone: Any = np.asarray(x_population), np.asarray(y_population).reshape(-1)
        members: Any = np.asarray(x_target_train), np.asarray(y_target_train).reshape(-1)
        if input_shape is not None and tuple(input_shape) != members[0].shape[1:]:
            raise ValueError(
                f"records have shape {members[0].shape[1:]}, not input_shape={tuple(input_shape)}."
            )
        others = ~known_among(everyone, members)
        if not others.any():
            raise ValueError("every record of the population is a member: none is left to compare.")
        dtype = np.result_type(everyone[0], members[0])
        records = Records.of(
            members=(members[0].astype(dtype), members[1]),
            nonmembers=(everyone[0][others].astype(dtype), everyone[1][others]),
        )
        self._set(records, batch_size, attack_percentage, normalization, seed)


def without(records: Records, known: Records) -> Records:
    """The records whose `x` is not among the known ones, whatever handler dealt either."""
    dtype = np.result_type(records.x, known.x)
    x = [part.x.reshape(len(part.y), -1).astype(dtype, copy=False) for part in (records, known)]
    if x[0].shape[1] != x[1].shape[1]:
        return records
    content = content_ids(np.concatenate(x))
    n = len(records.y)
    return records.rows(~np.isin(content[:n], content[n:]))
