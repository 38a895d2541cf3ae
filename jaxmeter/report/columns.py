"""The columns of tables of attacks, one row a column.

Every place that shows attacks side by side takes its columns from `COLUMNS`: the terminal, the
page, `results.json`, the tidy table of a study, its comparisons (terminal, Markdown, CSV, LaTeX),
its figures, and the list in `docs/stores.md`.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from rich.text import Text

from jaxmeter.attacks.interface import FPRS
from jaxmeter.report import measures
from jaxmeter.report.findings import access
from jaxmeter.report.result import Row
from jaxmeter.report.wording import (
    clean,
    dashed,
    duration,
    p_value,
    percent,
    rate_name,
    shortened,
    signed,
)

# An attack's entry of results.json; in a study its run stands beside it, under "run".
Entry = Mapping[str, Any]
Place = Literal["terminal", "page"]
REPORTS: tuple[Place, ...] = ("terminal", "page")
RUN = "run"
OVER_TARGETS = "_over_targets_"
INTERVAL = (("", "value"), ("_low", "low"), ("_high", "high"))  # names in the tidy table, and keys
_TPR_AT = "tpr_at_"


class Group(enum.IntEnum):
    """Columns that stand together, in the order of reading."""

    ATTACK, FIGURES, PAIRED, BUDGET, RECORDS, TARGET, COST, VERSION = range(8)


class Format(NamedTuple):
    """How numbers of a column read.

    Attributes:
      text: a number in a report, with its unit.
      digits: the same in a comparison of configurations, where the heading has the unit.
      unit: that unit; "" for none.
    """

    text: Callable[[float], str]
    digits: Callable[[float], str]
    unit: str = ""


SHARE = Format("{:.3f}".format, "{:.3f}".format)
RATE = Format(percent, lambda rate: f"{100 * rate:.1f}", "%")
DIFFERENCE = Format(signed, signed)
NATS = Format("{:.2f}".format, "{:.2f}".format)
SECONDS = Format(duration, "{:.4g}".format)
NUMBER = Format("{:.4g}".format, "{:.4g}".format)


class ReportCell(NamedTuple):
    """What a report shows of an attack in a column.

    Attributes:
      value: the figure, or why there is none.
      below: lines under it: its interval first.
      is_reason: whether `value` is a reason.
    """

    value: str
    below: tuple[str, ...] = ()
    is_reason: bool = False

    def rich(self, style: str = "") -> Text:
        """For a terminal: the figure in this style."""
        if self.is_reason:
            return Text(self.value.replace(" non-", "\nnon-"), style="dim italic")
        below = [part for line in self.below for part in ("\n", (line, "dim"))]
        return Text.assemble((self.value, style), *below)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
      key: its entry in `results.json`.
      label: its name for reading, in lower case; as a heading its first letter is a capital.
      says: what it says and in which unit, for the docs.
      value: what `results.json` holds of a row, whose report has this first row; None where it is
        no entry of its own there. A figure with its interval is a dict of value, low and high.
      read: the value in an entry, by default that of `key`; of a report's column from this alone.
      tidy: whether the tidy table has it.
      name: its name there, by default the key; with "<" for columns whose names follow from runs.
      type: Arrow's type there: "double", "int64" or "string".
      interval: whether it has an interval, and so three columns of that table.
      tested: whether its p-value stands below.
      format: how its numbers read.
      group: the columns that it stands with.
      role: what the tidy table's metadata say that it is; by default "metric".
      places: the reports that show it.
      compared: its place among the metrics of a comparison that names none; None: it is not there.
      ranks: whether attacks are ranked by it: the best one's is bold, the page draws intervals.
      is_long: whether a run's summary leaves it out, which no tidy table needs.
      split: the columns that it amounts to for some entries; by default itself.
    """

    key: str
    label: str
    says: str
    value: Callable[[Row, Row], Any] | None = None
    _: KW_ONLY
    read: Callable[[Entry], Any] | None = None
    tidy: bool = True
    name: str = ""
    type: Literal["double", "int64", "string"] = "double"
    interval: bool = False
    tested: bool = False
    format: Format = NUMBER
    group: Group = Group.FIGURES
    role: str = "metric"
    places: tuple[Place, ...] = REPORTS
    compared: int | None = 3
    ranks: bool = False
    is_long: bool = False
    split: "Callable[[Sequence[Entry]], list[Column]] | None" = None

    def __post_init__(self) -> None:
        """The name that a column has unless it gives another."""
        object.__setattr__(self, "name", self.name or self.key)

    @property
    def heading(self) -> str:
        """Over the column in a report."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def heading_on_two_lines(self) -> str:
        """The heading, broken at the space nearest to its middle."""
        heading, half = self.heading, len(self.heading) / 2
        spaces = [i for i, letter in enumerate(heading) if letter == " "]
        at = min(spaces, key=lambda i: abs(i - half), default=len(heading))
        return "\n".join(filter(None, (heading[:at], heading[at + 1 :])))

    @property
    def metric(self) -> str:
        """Over the column in a comparison, with the unit."""
        label = self.label or clean(self.name)
        return f"{label} ({self.format.unit})" if self.format.unit else label

    @property
    def names(self) -> tuple[str, ...]:
        """In the tidy table, with the ends of its interval."""
        return tuple(self.name + end for end, _ in INTERVAL) if self.interval else (self.name,)

    def of(self, entry: Entry) -> Any:
        """The value in an entry."""
        return self.read(entry) if self.read else entry.get(self.key)

    def cell(self, entry: Entry, place: Place) -> ReportCell:
        """What a report shows of an entry."""
        return self.shown(self.of(entry), place)

    def shown(self, value: Any, place: Place) -> ReportCell:
        """What a report shows of a value."""
        figure = value if isinstance(value, Mapping) else {"value": value}
        if figure["value"] is None:
            return ReportCell(figure.get("reason") or "–", is_reason=bool(figure.get("reason")))
        if isinstance(figure["value"], str):
            return ReportCell(clean(figure["value"]))
        below = []
        if "low" in figure:
            low, high = self.format.text(figure["low"]), self.format.text(figure["high"])
            below.append(dashed(low, high) if place == "terminal" else f"{low} to {high}")
        if self.tested:
            below.append(f"p {p_value(figure['p_value'])}")
        return ReportCell(self.format.text(figure["value"]), tuple(below))


# --- What becomes of some columns.


def tpr_at(fpr: float) -> Column:
    """The TPR at an FPR."""

    def read(entry: Entry) -> Any:
        return next((at for at in entry["tpr_at_fpr"] if at["fpr"] == fpr), None)

    label = f"TPR at {rate_name(fpr)} FPR"
    return replace(TPR, label=label, name=f"{_TPR_AT}{fpr:g}", read=read, split=None)


def _rates(entries: Sequence[Entry]) -> list[Column]:
    fprs = {at["fpr"] for entry in entries for at in entry["tpr_at_fpr"]}
    return [tpr_at(fpr) for fpr in sorted(fprs, reverse=True)]


def _minus_first(entries: Sequence[Entry]) -> list[Column]:
    """The difference from the first attack, by its name; the first has none from itself."""

    def read(entry: Entry) -> Any:
        minus = entry["auc_minus_reference"]
        return None if minus["reference"] == entry["name"] else minus

    first = entries[0]["auc_minus_reference"]["reference"]
    return [replace(MINUS, label=f"AUC minus {shortened(first, 24)}", read=read, split=None)]


def _over_targets(column: Column, part: str) -> Column:
    """The mean or "sd" of a figure over reference models in turn."""

    def read(entry: Entry) -> Any:
        return (_spreads(entry).get(column.name) or {}).get(part)

    return replace(
        column,
        label=f"{column.metric}, {part} over reference models",
        name=f"{column.name}{OVER_TARGETS}{part}",
        read=read,
        interval=False,
        format=column.format._replace(unit=""),  # the label has it
        role="metric" if part == "mean" else "interval",
        compared=None,
    )


def _spreads(entry: Entry) -> dict[str, Any]:
    """What an attack found on reference models, by the column that it is of."""
    over = entry.get("over_targets") or {}
    rates = {tpr_at(at["fpr"]).name: at for at in over.get("tpr_at_fpr", ())}
    return {AUC.name: over.get("auc"), **rates} if over else {}


def _of_spreads(entries: Sequence[Entry]) -> list[Column]:
    names = dict.fromkeys(name for entry in entries for name in _spreads(entry))
    return [_over_targets(named(name), part) for name in names for part in ("mean", "sd")]


def _number_of_targets(entries: Sequence[Entry]) -> list[Column]:
    over = any(entry.get("over_targets") for entry in entries)
    return [replace(TARGETS, split=None)] if over else []


def _stages(entries: Sequence[Entry]) -> list[Column]:
    """Wall time of the stages that runs have in common with others."""
    names = {stage for entry in entries for stage in entry[RUN].cost["stages"]}
    return [
        replace(STAGE, name=f"seconds.{stage}", read=_seconds_of(stage), split=None)
        for stage in sorted(names)
        if ":" not in stage
    ]


def _seconds_of(stage: str) -> Callable[[Entry], Any]:
    def read(entry: Entry) -> Any:
        return (entry[RUN].cost["stages"].get(stage) or {}).get("seconds")

    return read


def _packages(entries: Sequence[Entry]) -> list[Column]:
    names = dict.fromkeys(name for entry in entries for name in entry[RUN].versions)

    def of(package: str) -> Column:
        def read(entry: Entry) -> Any:
            return entry[RUN].versions.get(package)

        return replace(VERSION, name=f"version.{package}", read=read, split=None)

    return [of(package) for package in names]


# --- The table.


def _fact(key: str, says: str, value: Callable[[Row, Row], Any], **rest: Any) -> Column:
    """Something of `results.json` that no report shows as a column."""
    return Column(key, "", says, value, tidy="name" in rest, places=(), compared=None, **rest)


def _of_study(
    name: str, label: str, says: str, read: Callable[[Entry], Any], **rest: Any
) -> Column:
    """A column of the tidy table that is no entry of an attack by itself."""
    return Column(name, label, says, read=read, places=(), compared=None, **rest)


def _budget(name: str, says: str) -> Column:
    def read(entry: Entry) -> Any:
        return entry["budget"].get(name)

    return _of_study(name, "", says, read, type="int64", group=Group.BUDGET, role="budget")


def _names(name: str, says: str) -> Column:
    def read(entry: Entry) -> Any:
        return ", ".join(entry["budget"].get(name) or ())

    return _of_study(name, "", says, read, type="string", group=Group.BUDGET, role="budget")


AUC = Column(
    "auc",
    "AUC",
    "the probability that a random member outscores a random non-member, in [0, 1]",
    lambda row, first: measures.auc(row.result),
    read=itemgetter("auc"),
    interval=True,
    format=SHARE,
    compared=0,
    ranks=True,
)
MINUS = Column(
    "auc_minus_reference",
    "AUC minus the first attack's",
    "the difference from the first attack's AUC, paired, by DeLong's test",
    lambda row, first: {
        "reference": first.name,
        **row.result.auc_difference(first.result)._asdict(),
    },
    tidy=False,
    interval=True,
    tested=True,
    format=DIFFERENCE,
    group=Group.PAIRED,
    places=("page",),
    compared=None,
    is_long=True,
    split=_minus_first,
)
TPR = Column(
    "tpr_at_fpr",
    "TPR at an FPR",
    "the share of members found at this FPR, in [0, 1]; null where the records cannot resolve it",
    lambda row, first: [measures.at_fpr(row.result, fpr) for fpr in FPRS],
    name=f"{_TPR_AT}<fpr>",
    interval=True,
    format=RATE,
    compared=1,
    split=_rates,
)
TARGETS = _of_study(
    "targets",
    "",
    "how many reference models these were",
    lambda entry: (entry.get("over_targets") or {}).get("targets"),
    type="int64",
    role="budget",
    split=_number_of_targets,
)
STAGE = _of_study(
    "seconds.<stage>",
    "",
    "wall time of a stage; from the cache, the time that it took when it was computed",
    lambda entry: None,
    group=Group.COST,
    role="cost",
    split=_stages,
)
VERSION = _of_study(
    "version.<package>",
    "",
    "the version of a package",
    lambda entry: None,
    type="string",
    group=Group.VERSION,
    role="version",
    split=_packages,
)

COLUMNS: tuple[Column, ...] = (  # in the order of results.json
    Column(
        "name",
        "attack",
        "the attack",
        lambda row, first: row.name,
        read=itemgetter("name"),
        name="attack",
        type="string",
        group=Group.ATTACK,
        role="attack",
        compared=None,
    ),
    _fact(
        "access",
        '"white box" (needs weights or inner layers\' outputs), "black box" or "blind"',
        lambda row, first: access(row),
        name="access",
        type="string",
        group=Group.ATTACK,
        role="attack",
    ),
    _fact(
        "minus",
        "the signal whose negative its scores are, if a report has a figure of it; else null",
        lambda row, first: row.minus,
        group=Group.ATTACK,
    ),
    _fact(
        "n_members",
        "members that the figures are measured on",
        lambda row, first: row.result.n_members,
        name="held_members",
        type="int64",
        group=Group.RECORDS,
        role="budget",
    ),
    _fact(
        "n_nonmembers",
        "non-members likewise",
        lambda row, first: row.result.n_nonmembers,
        name="held_nonmembers",
        type="int64",
        group=Group.RECORDS,
        role="budget",
    ),
    _fact(
        "resolvable_fpr",
        "the smallest FPR that so many non-members resolve",
        lambda row, first: row.result.resolvable_fpr,
    ),
    AUC,
    MINUS,
    Column(
        "balanced_accuracy",
        "balanced accuracy",
        "the mean of both shares called rightly, in [0, 1]",
        lambda row, first: measures.balanced_accuracy(row.result),
        name="accuracy",
        interval=True,
        format=RATE,
        compared=2,
    ),
    TPR,
    Column(
        "epsilon",
        "epsilon, at least",
        "nats; a lower bound at 95% and delta 0. Of one trained target it is a statistic of "
        "leakage, no bound on the algorithm: see `AttackResult.epsilon`",
        lambda row, first: row.result.epsilon(),
        format=NATS,
        places=(),
        compared=None,
    ),
    _fact(
        "budget",
        "what the attack was given, see `Budget`",
        lambda row, first: vars(row.budget),
    ),
    _budget("known_members", "members that the attacker knew"),
    _budget("known_nonmembers", "non-members likewise"),
    _budget("models_trained", "models that the attacker trained"),
    _budget("queries", "forward passes of the target for each record"),
    _names("reads", "the signals read"),
    _names("parameters", "variables of the target whose values it needs"),
    _fact(
        "over_targets",
        "mean and standard deviation of the same attack on reference models in turn, each "
        "attacked by the others; only in studies with reference models, null for attacks without",
        lambda row, first: None if row.spread is None else row.spread.facts(),
        name=f"<figure>{OVER_TARGETS}<mean or sd>",
        split=_of_spreads,
    ),
    TARGETS,
    _of_study(
        "train_accuracy",
        "train accuracy",
        "the target's accuracy on the run's members",
        lambda entry: entry[RUN].accuracy[0],
        format=RATE,
        group=Group.TARGET,
    ),
    _of_study(
        "test_accuracy",
        "test accuracy",
        "the target's accuracy on the run's non-members",
        lambda entry: entry[RUN].accuracy[1],
        format=RATE,
        group=Group.TARGET,
    ),
    STAGE,
    _of_study(
        "seconds.this_attack",
        "",
        "wall time of fitting and scoring",
        lambda entry: _seconds_of(f"attack:{entry['name']}")(entry),
        group=Group.COST,
        role="cost",
    ),
    Column(
        "seconds",
        "time",
        "wall time of fitting and scoring, without the extraction of signals",
        lambda row, first: row.seconds,
        tidy=False,
        format=SECONDS,
        group=Group.COST,
        compared=None,
    ),
    _of_study(
        "seconds",
        "seconds",
        "wall time of the run",
        lambda entry: entry[RUN].cost.get("seconds"),
        group=Group.COST,
        role="cost",
    ),
    _of_study(
        "started",
        "",
        "when the run was started",
        lambda entry: entry[RUN].cost.get("started"),
        type="string",
        group=Group.COST,
        role="cost",
    ),
    _of_study(
        "host",
        "",
        "the machine",
        lambda entry: entry[RUN].cost.get("host"),
        type="string",
        group=Group.COST,
        role="cost",
    ),
    _of_study(
        "device",
        "",
        "what JAX computed on",
        lambda entry: entry[RUN].device,
        type="string",
        group=Group.VERSION,
        role="version",
    ),
    VERSION,
    _fact(
        "best_epoch",
        "the epoch kept; 0: as initialised",
        lambda row, first: row.best_epoch,
    ),
    _fact(
        "history",
        "epochs of a learned attack",
        lambda row, first: [epoch._asdict() for epoch in row.history],
        is_long=True,
    ),
    _fact(
        "roc",
        "the ROC curve by its corners",
        lambda row, first: measures.thinned_roc(row.result),
        is_long=True,
    ),
)


# --- What the places ask for.


def entry(row: Row, first: Row, place: Place | None = None) -> dict[str, Any]:
    """A row's entry of `results.json`, or of it what a report shows; `first` is the first row."""
    asked = [column for column in COLUMNS if place is None or place in column.places]
    return {column.key: column.value(row, first) for column in asked if column.value}


def brief(entry: Entry) -> dict[str, Any]:
    """An entry without what is long: what a run's summary holds of it."""
    long = {column.key for column in COLUMNS if column.is_long}
    return {key: value for key, value in entry.items() if key not in long}


def in_report(place: Place, entries: Sequence[Entry]) -> list[Column]:
    """The columns of a report's table of these attacks, the attacks' names first."""
    return _split([column for column in COLUMNS if place in column.places], entries)


def in_tidy_table(entries: Sequence[Entry]) -> list[Column]:
    """The columns of these attacks in a tidy table, after those of the config."""
    return _split([column for column in COLUMNS if column.tidy], entries)


def is_reserved(name: str) -> bool:
    """Whether a tidy table has a column of this name, or may have one."""
    if OVER_TARGETS in name:
        return True
    tidy = [column for column in COLUMNS if column.tidy]
    starts = [column.name.partition("<")[0] for column in tidy if "<" in column.name]
    return name.startswith(tuple(filter(None, starts))) or any(name in c.names for c in tidy)


def named(name: str) -> Column:
    """The column of this name in a tidy table; a column of numbers, if it is none of ours."""
    base, over, part = name.partition(OVER_TARGETS)
    if over:
        return _over_targets(named(base), part)
    for column in COLUMNS:
        if column.tidy and column.name == name:
            return column
    if name.startswith(_TPR_AT):
        try:
            return tpr_at(float(name.removeprefix(_TPR_AT)))
        except ValueError:
            pass
    base, _, end = name.rpartition("_")
    if end in ("low", "high") and named(base).interval:
        return replace(named(base), label=name, name=name, interval=False, compared=None)
    return Column(name, clean(name), "", compared=None)


def _split(columns: Sequence[Column], entries: Sequence[Entry]) -> list[Column]:
    found = []
    for column in sorted(columns, key=lambda column: column.group):
        found += column.split(entries) if column.split else [column]
    return found
