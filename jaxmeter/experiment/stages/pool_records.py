"""The stage "records" of a pool: who is a member says the target, not the data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmeter.experiment.stages.data import drawn, write_splits
from jaxmeter.experiment.stages.pool_draws import membership, of_stranger, parts_of

if TYPE_CHECKING:  # Only for annotations: a stage follows from the fields that it is given.
    from jaxmeter.experiment.config import Pool

_SMALLEST = 2  # members, and non-members, without which no part can be measured


def deal(
    folder: Path,
    *,
    data: Any,
    seed: int,
    contents: tuple[str, ...],
    fractions: tuple[float, float, float],
    pool: "Pool",
) -> None:
    """Writes what `data.dealt` reads: the target's membership, and parts that all targets share.

    Raises:
      ValueError: if a part is too small to measure anything on it.
    """
    records, notes = drawn(data, seed, contents)
    if pool.stranger is None:
        is_member = membership(records.x, pool.models, seed)[pool.index]
    else:
        is_member = of_stranger(records.x, pool.stranger, pool.index, seed)[0]
    parts = parts_of(records.x, fractions, seed)
    for share, part in zip(fractions, parts, strict=True):
        n_in = int(is_member[part].sum())
        if share and min(n_in, part.size - n_in) < _SMALLEST:
            raise ValueError(
                f"a part of {share:.0%} of the {len(is_member)} records has {n_in} members of the "
                f"target and {part.size - n_in} others; at least {_SMALLEST} of each are needed to "
                "measure anything, and hundreds to measure it well. Give more records or larger "
                "fractions."
            )
    write_splits(folder, records._replace(is_member=is_member), parts, notes)
