"""The tidy table: one row a run and attack, every fact a column."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from jaxmeter.experiment.results.finished import Finished

# What a column is, kept in its field's metadata: config, attack, metric, budget, cost, version.
_ROLE = b"role"
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
    fixed = {"run", "study", *_FIXED}
    for name in _union(run.fields for run in runs):
        if name == "study":
            continue
        column = f"config.{name}" if name in fixed or name.startswith(_PREFIXES) else name
        whole.add(column, "config", [run.fields.get(name) for run in runs])
    axes = [name for name in varying(whole.table()) if name not in ("study", "seed")]
    order = _order(whole.table(), ("study", *axes, "seed", "run"))
    whole = _Columns(len(runs), whole.table().take(order))
    runs = [runs[i] for i in order]

    rows = [(i, row) for i, run in enumerate(runs) for row in run.attacks]
    table = _Columns(len(rows), whole.table().take([i for i, _ in rows]))
    attacks = [row for _, row in rows]
    table.add("attack", "attack", [row["name"] for row in attacks])
    table.add("access", "attack", [row.get("access") for row in attacks])
    table.figures("auc", [row["auc"] for row in attacks])
    table.figures("accuracy", [row.get("balanced_accuracy") or {} for row in attacks])
    by_fpr = [{at["fpr"]: at for at in row["tpr_at_fpr"]} for row in attacks]
    for fpr in sorted({fpr for each in by_fpr for fpr in each}, reverse=True):
        table.figures(tpr_column(fpr), [each.get(fpr, {}) for each in by_fpr])
    table.add("epsilon", "metric", [number(row.get("epsilon")) for row in attacks], pa.float64())
    _in_turn(table, [row.get("over_targets") or {} for row in attacks])
    for name in ("known_members", "known_nonmembers", "models_trained", "queries"):
        table.add(name, "budget", [row["budget"].get(name) for row in attacks], pa.int64())
    for name in ("reads", "parameters"):
        texts = [", ".join(row["budget"].get(name) or ()) for row in attacks]
        table.add(name, "budget", texts, pa.string())
    table.add("held_members", "budget", [row.get("n_members") for row in attacks], pa.int64())
    table.add("held_nonmembers", "budget", [row.get("n_nonmembers") for row in attacks], pa.int64())

    run_of = [runs[i] for i, _ in rows]
    for place, name in enumerate(("train_accuracy", "test_accuracy")):
        shares = [number(run.accuracy[place]) for run in run_of]
        table.add(name, "metric", shares, pa.float64())
    stages = [run.cost["stages"] for run in run_of]
    for stage in _union(({s for s in each if ":" not in s} for each in stages), ordered=False):
        seconds = [_seconds(each.get(stage)) for each in stages]
        table.add(f"seconds.{stage}", "cost", seconds, pa.float64())
    mine = [
        _seconds(s.get(f"attack:{row['name']}")) for s, row in zip(stages, attacks, strict=True)
    ]
    table.add("seconds.this_attack", "cost", mine, pa.float64())
    totals = [number(run.cost.get("seconds")) for run in run_of]
    table.add("seconds", "cost", totals, pa.float64())
    for name in ("started", "host"):
        table.add(name, "cost", [run.cost.get(name) for run in run_of], pa.string())
    table.add("device", "version", [run.device for run in run_of], pa.string())
    for package in _union(run.versions for run in run_of):
        values = [run.versions.get(package) for run in run_of]
        table.add(f"version.{package}", "version", values, pa.string())
    return table.table()


def _in_turn(table: "_Columns", over: Sequence[dict[str, Any]]) -> None:
    """Figures of the same attacks on reference models in turn, where there are any."""
    if not any(over):
        return
    figures = [{"auc": each.get("auc")} for each in over]
    for each, by_name in zip(over, figures, strict=True):
        by_name |= {tpr_column(at["fpr"]): at for at in each.get("tpr_at_fpr", ())}
    for name in _union(figures):
        for part, role in (("mean", "metric"), ("sd", "interval")):
            values = [number((by_name.get(name) or {}).get(part)) for by_name in figures]
            table.add(f"{name}{OVER_TARGETS}{part}", role, values, pa.float64())
    table.add("targets", "budget", [each.get("targets") for each in over], pa.int64())


OVER_TARGETS = "_over_targets_"
_FIXED = (
    *("attack", "access", "auc", "auc_low", "auc_high", "accuracy", "accuracy_low"),
    *("accuracy_high", "epsilon", "known_members", "known_nonmembers", "models_trained", "queries"),
    *("reads", "parameters", "held_members", "held_nonmembers", "train_accuracy", "test_accuracy"),
    *("seconds", "started", "host", "device", "targets"),
    *("auc_over_targets_mean", "auc_over_targets_sd"),
)
_PREFIXES = ("tpr_at_", "seconds.", "version.", "config.")


def tpr_column(fpr: float) -> str:
    """The column of the TPR at an FPR.

    >>> tpr_column(0.001)
    'tpr_at_0.001'
    """
    return f"tpr_at_{fpr:g}"


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

    def figures(self, name: str, figures: Sequence[dict[str, Any]]) -> None:
        """A value and its interval, as three columns."""
        for suffix, key, role in (
            ("", "value", "metric"),
            ("_low", "low", "interval"),
            ("_high", "high", "interval"),
        ):
            values = [number(figure.get(key)) for figure in figures]
            self.add(f"{name}{suffix}", role, values, pa.float64())

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


def _seconds(stage: dict[str, Any] | None) -> float | None:
    return number(stage.get("seconds")) if stage else None


def _union(groups: Iterable[Iterable[str]], ordered: bool = True) -> list[str]:
    names = dict.fromkeys(name for group in groups for name in group)
    return list(names) if ordered else sorted(names)


def _order(table: pa.Table, names: Sequence[str]) -> list[int]:
    columns = [table[name].to_pylist() for name in names if name in table.column_names]
    return sorted(range(len(table)), key=lambda i: [_sortable(column[i]) for column in columns])


def _sortable(value: Any) -> tuple[bool, Any]:
    """Values of one column in order, what has none last."""
    missing = value is None or value != value
    return missing, 0 if missing else value
