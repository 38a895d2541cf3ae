"""A finished run opened again: its scores, and the report that its folder amounts to."""

import io
import math
import warnings
import zipfile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmeter.attacks.interface import Epoch, Spread
from jaxmeter.auditing.assembly import assembled
from jaxmeter.auditing.layers import stored_layers
from jaxmeter.data.npz import check_room
from jaxmeter.data.records import Records
from jaxmeter.experiment.results.finished import DamagedRun, Finished, checked, document
from jaxmeter.experiment.results.tidy_table import number
from jaxmeter.experiment.store.files import MALFORMED
from jaxmeter.metrics import AttackResult, MetricWarning, evaluate
from jaxmeter.report.facts import LAYER_ARRAYS
from jaxmeter.report.report import Report
from jaxmeter.report.result import Budget, Row
from jaxmeter.target import Source, TargetSpec


class Scores(NamedTuple):
    """A run's held-out records and every attack's scores of them."""

    is_member: NDArray  # bool [n]
    y: NDArray  # int [n]
    held_index: NDArray  # int [n], into the records given to the run
    by_attack: dict[str, NDArray]  # float [n] each, in the attacks' order
    of_layers: dict[str, NDArray]  # as `report.facts.layer_arrays` gives them; {} without a map


def scores(run: Finished) -> Scores:
    """Reads a run's `scores.npz`; nothing is unpickled.

    Raises:
      DamagedRun: if it is missing, cut off, or lacks an array.
    """
    try:
        content = checked(run.folder, "scores.npz", run.hashes)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        check_room(unpacked, len(content), None, "remove the run's folder and sweep again")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            names = [str(name) for name in file["attacks"]]
            keys = [str(key) for key in file["keys"]]
            by_attack = {name: file[key] for name, key in zip(names, keys, strict=True)}
            of_layers = {key: file[key] for key in LAYER_ARRAYS if key in file}
            found = Scores(file["is_member"], file["y"], file["held_index"], by_attack, of_layers)
    except DamagedRun as damage:
        raise DamagedRun(
            f"{run.folder}: {damage}. Sweep again: it is put together again from its stages."
        ) from damage
    except Exception as error:  # zipfile, zlib and NumPy have a dozen ways to fail
        raise DamagedRun(
            f"{run.folder / 'scores.npz'} cannot be read ({error}). Remove the run's folder and "
            "sweep again."
        ) from error
    n = len(found.is_member)
    arrays = (found.y, found.held_index, *by_attack.values(), *(a.T for a in of_layers.values()))
    lengths = {len(array) for array in arrays}
    if lengths != {n} or names != [row["name"] for row in run.attacks]:
        raise DamagedRun(
            f"{run.folder / 'scores.npz'} does not belong to its results.json: {n} records and "
            f"attacks {names}. Remove the run's folder and sweep again."
        )
    return found


def attack_result(run: Finished, attack: str, found: Scores | None = None) -> AttackResult:
    """An attack's scores with every statistic of them, as the run's report had it."""
    held = scores(run) if found is None else found
    row = next(row for row in run.attacks if row["name"] == attack)
    threshold = number(row["balanced_accuracy"]["threshold"])
    with warnings.catch_warnings():  # what they say was noted when the run was made
        warnings.simplefilter("ignore", MetricWarning)
        return evaluate(held.by_attack[attack], held.is_member, threshold=threshold)


def report(run: Finished) -> Report:
    """The report of a finished run, with `table()`, `facts()` and `save()`.

    Its records have no content: `report.held.x` is `[n, 0]`, since a run's folder does not keep
    the data. So there are no pictures of the most exposed records, only their numbers.

    Raises:
      DamagedRun: if `results.json`, `config.json` or `scores.npz` cannot be read.
    """
    results, config = document(run, "results.json"), document(run, "config.json")
    held = scores(run)
    stages = run.cost["stages"]
    try:
        rows = tuple(
            Row(
                name=row["name"],
                result=attack_result(run, row["name"], held),
                budget=_budget(row["budget"]),
                seconds=number((stages.get(f"attack:{row['name']}") or {}).get("seconds")) or 0.0,
                history=tuple(_epoch(entry) for entry in row.get("history") or ()),
                best_epoch=row.get("best_epoch"),
                spread=Spread.of(row["over_targets"]) if row.get("over_targets") else None,
                minus=row.get("minus"),
            )
            for row in results["attacks"]
        )
        parts = tuple(_counts(results["parts"][name]) for name in ("fit", "select", "held"))
        x = np.zeros((len(held.y), 0), np.float32)
        settings = {k: v for k, v in config["fields"].items() if k != "seed"}
        ranking = None
        if results.get("layers"):
            ranking = stored_layers(results["layers"], held.of_layers, held.is_member)
        return assembled(
            rows=rows,
            held=Records(x, held.y, held.is_member),
            held_index=held.held_index,
            parts=parts,  # type: ignore[arg-type]
            target=_spec(results["target"]),
            accuracy=tuple(  # type: ignore[arg-type]
                math.nan if value is None else float(value) for value in run.accuracy
            ),
            seed=str(run.fields.get("seed", "not recorded")),
            signal_seconds=number((stages.get("signals") or {}).get("seconds")) or 0.0,
            signal_bytes=int((results.get("signals") or {}).get("bytes") or 0),
            notes=tuple(results["notes"]),
            packages=tuple(run.versions.items()),
            device=run.device,
            settings={"run": run.name, **settings},
            layers=ranking,
        )
    except (*MALFORMED, StopIteration, ValueError) as error:
        raise DamagedRun(
            f"{run.folder / 'results.json'} or config.json lacks an entry or holds one of another "
            f"kind ({error!r}). Remove the run's folder and sweep again."
        ) from error


def _budget(facts: dict[str, Any]) -> Budget:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Budget(**values)


def _epoch(entry: dict[str, Any]) -> Epoch:
    figures = (number(entry[name]) for name in ("loss", "select_loss", "select_auc"))
    return Epoch(entry["epoch"], *(math.nan if f is None else f for f in figures))


def _counts(part: Any) -> tuple[int, int]:
    return (part["members"], part["nonmembers"]) if isinstance(part, dict) else tuple(part)


def _spec(facts: dict[str, Any]) -> TargetSpec:
    source = facts["source"]
    shape = facts["input_shape"]
    return TargetSpec(
        input_shape=None if shape is None else tuple(shape),
        n_classes=facts["n_classes"],
        layers=tuple(facts["layers"]),
        variables=tuple(facts["variables"]),
        input_dtype=facts["input_dtype"],
        source=Source(
            route=source["route"],
            origin=source["origin"],
            versions=tuple(source["versions"].items()),
            logits=source["logits"],
            difference=number(source["difference"]),
        ),
    )
