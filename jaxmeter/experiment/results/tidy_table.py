"""The tidy table: one row a run and attack, every fact a column."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from jaxmeter.experiment.results.finished import Finished
from jaxmeter.report import columns
from jaxmeter.report.columns import INTERVAL, RUN, Column

# What a column is, kept in its field's metadata: config, attack, metric, budget, cost, version.
_ROLE = b"role"
_CONFIG = "config."  # before a field that has the name of another column
DRAWN = ("seed", "target.index")  # another draw, another model of a pool: what means are over
_EXACT = 2**53  # integers up to it are floats without loss


def tabulated(runs: Sequence[Finished]) -> pa.Table:
    """Rows of finished runs, in the order of study, varying fields, seed, run and attack.

    A config field keeps its type where all runs agree on it (integers among floats count as
    floats); otherwise its values become text. Rates and AUCs are in [0, 1], epsilon is in nats,
    seconds are wall time. A figure that the records cannot resolve is null.
    """
    whole = _Columns(len(runs))
    whole.add("run", "run", [run.name for run in runs])
    whole.add("study", "config", [run.study for run in runs])
    for name in _union(run.fields for run in runs):
        if name == "study":
            continue
        taken = name in ("run", "study") or name.startswith(_CONFIG) or columns.is_reserved(name)
        whole.add(
            f"{_CONFIG}{name}" if taken else name, "config", [run.fields.get(name) for run in runs]
        )
    axes = [name for name in varying(whole.table()) if name not in ("study", "seed")]
    order = _order(whole.table(), ("study", *axes, "seed", "run"))
    whole = _Columns(len(runs), whole.table().take(order))
    runs = [runs[i] for i in order]

    rows = [(i, row) for i, run in enumerate(runs) for row in run.attacks]
    table = _Columns(len(rows), whole.table().take([i for i, _ in rows]))
    entries = [{**row, RUN: runs[i]} for i, row in rows]
    for column in columns.in_tidy_table(entries):
        table.add_column(column, [column.of(entry) for entry in entries])
    return table.table()


def of_role(table: pa.Table, role: str) -> list[str]:
    """Names of the columns that are config, attack, metric, interval, budget, cost or version."""
    return [f.name for f in table.schema if (f.metadata or {}).get(_ROLE) == role.encode()]


def varying(table: pa.Table) -> list[str]:
    """Config columns with more than one value; of columns that vary as one, the first.

    Those of `DRAWN` come among them if they vary; a part's own seed that is the run's everywhere
    does not.
    """
    found, seen = [], set()
    seeds = table["seed"].to_pylist() if "seed" in table.column_names else None
    for name in of_role(table, "config"):
        values = table[name].to_pylist()
        if name.endswith(".seed") and values == seeds:
            continue
        numbers: dict[Any, int] = {}
        pattern = tuple(numbers.setdefault(v, len(numbers)) for v in values)
        if len(numbers) > 1 and (name in DRAWN or pattern not in seen):
            found.append(name)
            if name not in DRAWN:
                seen.add(pattern)
    return found


def number(value: Any) -> float | None:
    """A figure of a JSON file, where infinities are text."""
    return None if value is None else float(value)


class _Columns:
    """A table as it grows."""

    def __init__(self, length: int, table: pa.Table | None = None) -> None:
        self.length = length
        self.arrays = [] if table is None else list(table.columns)
        self.fields = [] if table is None else list(table.schema)

    def add(
        self, name: str, role: str, values: Sequence[Any], kind: pa.DataType | None = None
    ) -> None:
        array = pa.array(values, kind) if kind is not None else _typed(values)
        self.arrays.append(array)
        self.fields.append(pa.field(name, array.type, metadata={_ROLE: role.encode()}))

    def add_column(self, column: Column, values: Sequence[Any]) -> None:
        """A column of attacks; a figure with its interval as three."""
        kind = pa.type_for_alias(column.type)
        if not column.interval:
            plain = [number(v) for v in values] if column.type == "double" else values
            self.add(column.name, column.role, plain, kind)
            return
        for end, part in INTERVAL:
            figures = [number((value or {}).get(part)) for value in values]
            self.add(f"{column.name}{end}", "interval" if end else column.role, figures, kind)

    def table(self) -> pa.Table:
        return pa.table(self.arrays, schema=pa.schema(self.fields))


def _typed(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(v is None or -(2**63) <= v < 2**63 for v in values):
        return pa.array(values, pa.int64())
    unbounded = all(v in ("inf", "-inf") for v in values if isinstance(v, str))
    if kinds & {int, float} and kinds <= {int, float, str} and unbounded:
        if all(not isinstance(v, int) or abs(v) <= _EXACT for v in values):
            return pa.array([number(v) for v in values], pa.float64())
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _order(table: pa.Table, names: Sequence[str]) -> list[int]:
    columns = [table[name].to_pylist() for name in names if name in table.column_names]
    return sorted(range(len(table)), key=lambda i: [_sortable(column[i]) for column in columns])


def _sortable(value: Any) -> tuple[bool, Any]:
    """Values of one column in order, what has none last."""
    missing = value is None or value != value
    return missing, 0 if missing else value
