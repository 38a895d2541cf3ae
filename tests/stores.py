"""Stores of finished runs written by hand, in the format that sweeps write."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeter.attacks.interface import Epoch
from jaxmeter.experiment.runs.run import summarized
from jaxmeter.experiment.store.files import FORMAT
from jaxmeter.metrics import MetricWarning, best_threshold, evaluate
from jaxmeter.report import facts
from jaxmeter.report.result import Budget, Row
from jaxmeter.target import Source, TargetSpec

TARGET = TargetSpec(
    input_shape=(8, 8, 1),
    n_classes=10,
    layers=("conv", "out"),
    variables=("conv/kernel", "out/kernel"),
    source=Source(route="keras-jax", origin="target.keras", versions=(("keras", "3.15"),)),
)
VERSIONS = {"python": "3.11.9", "jaxmeter": "0.1.0", "jax": "0.10.2"}


def rows(strengths: Mapping[str, float], seed: int = 0, n: int = 120) -> list[Row]:
    """Attacks on n members and n non-members, whose scores lie `strength` apart.

    In standard deviations, so the AUC is near Phi(strength / sqrt 2). "learned" has a history.
    """
    random, is_member = np.random.default_rng(seed), np.arange(2 * n) < n
    found = []
    for name, strength in strengths.items():
        drawn = random.normal(size=4 * n)
        held, select = drawn[: 2 * n] + strength * is_member, drawn[2 * n :] + strength * is_member
        fits = name == "learned"
        with warnings.catch_warnings():  # one attack of forty at chance is below it
            warnings.simplefilter("ignore", MetricWarning)
            result = evaluate(held, is_member, threshold=best_threshold(select, is_member))
        found.append(
            Row(
                name=name,
                result=result,
                budget=Budget(
                    known_members=40 if fits else 10,
                    known_nonmembers=40 if fits else 10,
                    queries=int(name != "blind baseline"),
                    reads=("x", "y") if name == "blind baseline" else ("logits", "loss"),
                    parameters=("out/kernel",) if fits else (),
                ),
                seconds=0.25,
                history=tuple(
                    Epoch(e, 0.7 / (1 + e), 0.7 / (1 + e / 2), 0.5 + e / 100) for e in range(1, 6)
                )
                if fits
                else (),
                best_epoch=4 if fits else None,
            )
        )
    return found


def run_name(study: str, fields: Mapping[str, Any]) -> str:
    """The name of a run, as a store has it."""
    text = json.dumps(dict(fields), sort_keys=True, default=str)
    return f"{study}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def finished_run(
    store: Path, study: str, fields: Mapping[str, Any], found: list[Row], state: str = "done"
) -> Path:
    """Writes one run's folder."""
    name = run_name(study, fields)
    folder = store / "runs" / name
    folder.mkdir(parents=True)
    attacks = facts.attack_facts(found)
    for row in attacks:
        row.pop("seconds", None)
    n = found[0].result.n_members
    head = {"tool": "jaxmeter", "format": FORMAT, "run": name}
    files: dict[str, Any] = {
        "config.json": {
            **head,
            "study": study,
            "config": {},
            "fields": {"study": study, **fields},
            "inputs": {},
            "versions": VERSIONS,
            "device": "cpu:0",
        },
        "results.json": {
            **head,
            "attacks": attacks,
            "parts": {
                name: {"members": k, "nonmembers": k}
                for name, k in (("fit", 30), ("select", 10), ("held", n))
            },
            "target": facts.target_facts(TARGET),
            "accuracy": [1.0, 0.9],
            "notes": ["a note"],
        },
        "cost.json": {
            "stages": {
                "target": {"seconds": 2.0, "cached": True},
                "signals": {"seconds": 1.0, "cached": False},
                **{f"attack:{row.name}": {"seconds": 0.25, "cached": False} for row in found},
            },
            "seconds": 3.5,
            "started": "2026-05-04T10:00:00+00:00",
            "host": "somewhere",
        },
        "status.json": {"state": state, "error": "ValueError: NaN" if state == "failed" else None},
    }
    files["summary.json"] = summarized(files["config.json"], files["results.json"])
    is_member = found[0].result.is_member
    arrays = facts.score_arrays(
        found, is_member, np.arange(2 * n) % 10, np.arange(2 * n)[::-1].copy()
    )
    np.savez(folder / "scores.npz", **arrays)
    status = files.pop("status.json")
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value, indent=1, sort_keys=True))
    status["files"] = {
        file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
        for file in ("config.json", "results.json", "summary.json", "scores.npz")
    }
    (folder / "status.json").write_text(json.dumps(status))
    return folder


ATTACKS = {"negative loss": 0.5, "learned": 1.0, "blind baseline": 0.0}


def small_study(store: Path, study: str = "sizes", seeds: int = 3) -> Path:
    """Known records 10, 100, 1000 x layer a, b x seeds; the learned attack gains with both."""
    for i, known in enumerate((10, 100, 1000)):
        for layer in "ab":
            for seed in range(seeds):
                strengths = {
                    **ATTACKS,
                    "learned": 0.6 + 0.4 * i + 0.3 * (layer == "b"),
                }
                fields = {
                    "seed": seed,
                    "data.kind": "Digits",
                    "data.known": known,
                    "target.layer": layer,
                }
                number = 100 * i + 10 * (layer == "b") + seed
                finished_run(store, study, fields, rows(strengths, number))
    return store
