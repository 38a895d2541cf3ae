"""How long the tidy table of a store with 10,000 finished runs takes.

    python benchmarks/results.py [RUNS]

The runs are copies of one audit's results (3 attacks, 900 held-out records, curves and history
included) under 10,000 configs. The mark: a table, and a comparison printed from it, under 3 s.
It takes 1.4 and 1.5 s on two cores of a server, Python 3.11, files in the page cache.
"""

import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxmeter.experiment import results
from jaxmeter.experiment.results.tables import compared
from jaxmeter.experiment.runs import run
from jaxmeter.experiment.store.files import FORMAT, encoded
from jaxmeter.metrics import best_threshold, evaluate
from jaxmeter.report.facts import attack_facts, target_facts
from jaxmeter.report.result import Budget, Row
from jaxmeter.target import TargetSpec

HELD = 900


def attacks() -> list[dict]:
    """Rows of results.json, by the code that writes them."""
    random, is_member = np.random.default_rng(0), np.arange(HELD) % 2 == 0
    rows = []
    for name, strength in (("negative loss", 0.8), ("white box", 1.0), ("blind baseline", 0.0)):
        held, select = (random.normal(size=HELD) + strength * is_member for _ in range(2))
        result = evaluate(held, is_member, threshold=best_threshold(select, is_member))
        budget = Budget(known_members=450, known_nonmembers=450, reads=("logits", "loss"))
        rows.append(Row(name=name, result=result, budget=budget, seconds=1.0))
    attacks = attack_facts(rows)
    for row in attacks:
        del row["seconds"]
        if row["name"] == "white box":
            epoch = {"loss": 0.512345, "select_loss": 0.61234, "select_auc": 0.7123}
            row["history"] = [{"epoch": e, **epoch} for e in range(1, 26)]
    return attacks


def write_store(store: Path, count: int) -> int:
    """Writes the runs; returns the bytes of one."""
    rows, spec = attacks(), TargetSpec(input_shape=(8, 8), n_classes=10, layers=(), variables=())
    fields = {f"target.field_{i}": i for i in range(25)} | {"data": "Digits"}
    size = 0
    for i in range(count):
        name = f"many-{hashlib.sha256(str(i).encode()).hexdigest()[:12]}"
        head = {"tool": "jaxmeter", "format": FORMAT, "run": name}
        folder = store / "runs" / name
        folder.mkdir(parents=True)
        mine = {"seed": i % 10, "known": i // 10 % 20, "target.width": i // 200, **fields}
        files: dict[str, dict] = {
            "config.json": {**head, "study": "many", "config": mine, "fields": mine, "inputs": {},
                            "versions": {"jax": "0.10.2"}, "device": "cpu:0"},
            "results.json": {**head, "attacks": rows, "accuracy": [1.0, 0.95], "notes": [],
                             "target": target_facts(spec)},
            "cost.json": {"stages": {"signals": {"seconds": 1.0, "cached": False}},
                          "seconds": 9.5, "started": "2026-01-01T00:00:00+00:00", "host": "h"},
        }  # fmt: skip
        files["summary.json"] = run.summarized(files["config.json"], files["results.json"])
        hashes, size = {}, 0
        for file, value in files.items():
            content = encoded(value, indent=None if file == "summary.json" else 1)
            hashes[file] = hashlib.sha256(content).hexdigest()
            size += len(content)
            (folder / file).write_bytes(content)
        status = {"state": "done", "error": None, "files": hashes}
        (folder / "status.json").write_text(json.dumps(status))
    return size


def main(count: int = 10_000) -> None:
    """Prints seconds; nothing is kept from one time to the next."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        size = write_store(store, count)
        print(f"{count:,} runs of {size / 1000:.0f} kB")
        for what in ("first", "again", "again"):
            start = time.perf_counter()
            table = results.tidy(store, "many")
            read = time.perf_counter() - start
            comparison = compared(table)
            whole = time.perf_counter() - start
            assert len(table) == 3 * count and comparison.lines
            print(f"{what}: tidy table {read:.2f} s, with the comparison {whole:.2f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
