"""The graph of stages: which part of a config and which files each one follows from."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmeter.attacks.suite import asked_of_references, spec_of, union_of_specs
from jaxmeter.auditing.assembly import accuracy_of
from jaxmeter.auditing.layers import READS, completed, completed_for_references, read_of
from jaxmeter.experiment.config import Config, ShadowModels, TargetFile
from jaxmeter.experiment.serialization import plain
from jaxmeter.experiment.stages import attack as attack_stage
from jaxmeter.experiment.stages import data as data_stage
from jaxmeter.experiment.stages import examination
from jaxmeter.experiment.stages import layers as layers_stage
from jaxmeter.experiment.stages import metrics as metrics_stage
from jaxmeter.experiment.stages import references as references_stage
from jaxmeter.experiment.stages import signals as signals_stage
from jaxmeter.experiment.stages import target as target_stage
from jaxmeter.experiment.stages.data import Splits
from jaxmeter.experiment.stages.examination import TargetLocation
from jaxmeter.experiment.store.fingerprint import code_version, surroundings
from jaxmeter.experiment.store.store import Entry, Store
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.shadow.architecture import Architecture, of_file

Progress = Callable[[str, int, int], None]

# A later stage's key holds hashes of the files that it reads, not keys of the stages before it. So
# a stage that is computed again and gives the same bytes costs nothing below it.


class Entries(dict[str, Entry]):
    """The entries of a run by label, in order: "records", "target", ..., "attack:<name>"."""


def make(
    config: Config,
    store: Store,
    contents: Mapping[str, str],
    *,
    made: Entries,
    progress: Progress | None = None,
) -> Entries:
    """All entries of a run, from the store or computed into it.

    Args:
      config: a valid config.
      store: where entries are.
      contents: SHA-256 of the input files by the path in the config.
      made: filled as entries are there, so that after an error it tells how far the run came.
      progress: called as `progress(stage, done, total)`.
    """

    def obtain(label: str, module: Any, parts: tuple, follows: Any, compute: Any) -> Entry:
        stage = label.partition(":")[0]
        ingredients = {
            "code": _code((module.__name__,), parts),
            "surroundings": surroundings(),
            "config": [plain(part) for part in parts],
            "follows from": follows,
        }
        if progress:
            progress(label, 0, 1)
        try:
            entry = store.obtain(stage, ingredients, compute)
        except Exception as error:
            error.add_note(f"in stage {label}")
            raise
        if progress:
            progress(label, 1, 1)
        made[label] = entry
        return entry

    data, seed = config.data, config.seed
    of_data = tuple(contents[str(path)] for path in _files(data))
    draw: dict[str, Any] = {"data": data, "seed": seed, "contents": of_data}

    # records: members and non-members, and the parts they are dealt into
    entry = obtain(
        "records",
        data_stage,
        (data, config.fractions, config.overlap),
        {"seed": seed, "files": list(of_data)},
        partial(data_stage.deal, **draw, fractions=config.fractions, overlap=config.overlap),
    )
    dealt = data_stage.dealt(entry.folder)
    used = np.concatenate(dealt.parts)

    # target, intake: the classifier, trained or from a file, and what there is in it
    place, origin = _target(config, contents, dealt, draw, obtain)
    shape = list(dealt.shape)
    follows: dict[str, Any] = {"content": list(place.content), "origin": origin, "shape": shape}
    how = (place.head, place.trust, place.path.suffix)
    examine = partial(examination.examine, place=place, shape=dealt.shape, origin=origin)
    entry = obtain("intake", examination, how, follows, examine)
    spec, target_notes = examination.examined(entry.folder)
    asked = examination.unloaded(spec)
    reads = [spec_of(attack, asked) for attack in config.attacks]

    # signals: what all attacks read, and what the layer map does
    wanted = completed(union_of_specs(reads, asked), asked)

    def extract(folder: Path) -> None:
        signals_stage.compute(
            folder,
            target=examination.opened(place, dealt.shape)[0],
            records=data_stage.drawn(**draw).records.rows(used),
            spec=wanted,
            device_budget=config.device_mib * 2**20,
            progress=progress and partial(progress, "signals"),
        )

    records_file = {"records": dealt.everything, "split": made["records"].files["split.npz"]}
    signals = obtain(
        "signals",
        signals_stage,
        (wanted, config.device_mib, *how),
        {**records_file, "target": list(place.content)},
        extract,
    )

    # references: what models that are trained on these records say of them
    references = None
    if config.references is not None:
        plan, how_made, of_models = _plan(config, config.references, contents, dealt, place, asked)

        def train(folder: Path) -> None:
            references_stage.compute(
                folder,
                plan=plan,
                records=data_stage.drawn(**draw).records.rows(used),
                seed=seed,
                device_budget=config.device_mib * 2**20,
                progress=progress and partial(progress, "references"),
            )

        references = obtain(
            "references",
            references_stage,
            (plan.k, plan.recipe, plan.asked, config.device_mib, *how_made),
            {**records_file, **of_models, "seed": seed},
            train,
        )

    # attack: one entry an attack
    chosen = data_stage.known_rows(dealt, known=config.known, seed=seed)
    starts = np.cumsum([0, *(part.size for part in dealt.parts)])
    index = tuple(part[rows] for part, rows in zip(dealt.parts, chosen, strict=True))
    found = []
    notes = [*dealt.notes, *target_notes]
    notes += references_stage.notes(references.folder) if references else []
    for attack, read in zip(config.attacks, reads, strict=True):
        models = references if attack.needs_references else None

        def run(
            folder: Path, attack: Any = attack, read: Any = read, models: Entry | None = models
        ) -> None:
            records = data_stage.drawn(**draw).records
            attack_stage.attack(
                folder,
                config=attack,
                spec=read,
                signals=signals_stage.loaded(signals.folder),
                seen=references_stage.seen(models.folder) if models else None,
                parts=tuple(  # type: ignore[arg-type]
                    attack_stage.AttackRows(records.rows(i), start + rows)
                    for i, start, rows in zip(index, starts[:-1], chosen, strict=True)
                ),
                seed=seed,
            )

        follows = {
            **records_file,
            "signals": signals_stage.read_files(signals.folder, signals.files, read),
            "seed": seed,
        }
        if models and (asks := attack.reads(asked)):
            follows["references"] = references_stage.read_files(models.folder, models.files, asks)
        label = f"attack:{attack.name}"
        entry = obtain(label, attack_stage, (attack, read, config.known), follows, run)
        came = attack_stage.came(entry.folder)
        found.append((attack, read, came))
        notes += came.notes

    # layers: what each gives away by itself, where the signals say something of layers
    held = dealt.parts[2]
    ranking = None
    if (of_layers := read_of(wanted)) is not None:

        def rank(folder: Path) -> None:
            rows = slice(starts[2], starts[3])
            seen = references_stage.seen(references.folder) if references else None
            layers_stage.rank(
                folder,
                signals=signals_stage.loaded(signals.folder).only(of_layers).rows(rows),
                seen=seen and seen.rows(rows),
                y=dealt.y[held],
                is_member=dealt.is_member[held],
                target=spec,
            )

        follows = {
            "split": records_file["split"],
            "target": made["intake"].files["target.json"],
            "signals": signals_stage.read_files(signals.folder, signals.files, of_layers),
        }
        if references:
            follows["references"] = references_stage.read_files(
                references.folder, references.files, READS
            )
        entry = obtain("layers", layers_stage, (of_layers,), follows, rank)
        ranking, said = layers_stage.ranked(entry.folder, dealt.is_member[held])
        notes += said

    # metrics: every figure
    signal_bytes = tree_bytes(signals_stage.loaded(signals.folder))

    def score(folder: Path) -> None:
        metrics_stage.score(
            folder,
            attacks=found,
            target=spec,
            is_member=dealt.is_member,
            y=dealt.y,
            parts=index,
            accuracy=accuracy_of(signals_stage.loaded(signals.folder), dealt.is_member[used]),
            layers=ranking,
            signal_bytes=signal_bytes,
            notes=notes,
        )

    black = signals_stage.read_files(signals.folder, signals.files, union_of_specs([], asked))
    follows = {
        **records_file,
        "target": made["intake"].files["target.json"],
        "signals": black,
        "seed": seed,
        "found": [dict(made[f"attack:{attack.name}"].files) for attack in config.attacks],
        "layers": dict(made["layers"].files) if "layers" in made else None,
        "signal bytes": signal_bytes,
        "notes": notes,
    }
    described = tuple((attack, attack.fits) for attack in config.attacks)
    obtain("metrics", metrics_stage, (described, tuple(reads), config.known), follows, score)
    return made


def _target(
    config: Config,
    contents: Mapping[str, str],
    dealt: Splits,
    draw: dict[str, Any],
    obtain: Callable[..., Entry],
) -> tuple[TargetLocation, str]:
    """Where the target lies, trained if need be, and how results name it."""
    recipe = config.target
    if isinstance(recipe, TargetFile):
        of_target = tuple(contents[str(path)] for path in recipe.files())
        place = TargetLocation(recipe.path, recipe.head, recipe.weights, recipe.trust, of_target)
        return place, recipe.path.as_posix()
    n_classes = int(dealt.y.max()) + 1

    def train(folder: Path) -> None:
        records = data_stage.drawn(**draw).records
        members = records.rows(records.is_member)
        seed = config.seed
        target_stage.train(folder, recipe=recipe, members=members, n_classes=n_classes, seed=seed)

    follows = {"members": dealt.members, "classes": n_classes, "seed": config.seed}
    entry = obtain("target", target_stage, (recipe,), follows, train)
    content = (entry.files[target_stage.FILE],)
    place = TargetLocation(entry.folder / target_stage.FILE, (), None, False, content)
    return place, f"trained as {type(recipe).__name__}"


def _plan(
    config: Config,
    references: ShadowModels,
    contents: Mapping[str, str],
    dealt: Splits,
    place: TargetLocation,
    asked: Any,
) -> tuple[references_stage.ReferencePlan, tuple[Any, ...], dict[str, Any]]:
    """Which models are to be trained; config and files that their architecture follows from."""
    what = references.architecture
    architecture: Callable[[], Architecture]
    how: tuple[Any, ...]
    follows: dict[str, Any]
    if what is None or isinstance(what, TargetFile):
        path, trust = (place.path, place.trust) if what is None else (what.path, what.trust)
        content = place.content[0] if what is None else contents[str(path)]
        architecture = partial(of_file, path, trust=trust)
        how, follows = (trust, path.suffix), {"architecture": content}
    else:
        n_classes, seed = int(dealt.y.max()) + 1, config.seed
        architecture = partial(
            references_stage.built, what, dealt.shape, n_classes=n_classes, seed=seed
        )
        how, follows = (what,), {"classes": n_classes}
    specs = completed_for_references(asked_of_references(config.attacks, asked))
    plan = references_stage.ReferencePlan(architecture, references.recipe, references.k, specs)
    return plan, how, follows


def code(config: Config) -> str:
    """The version of all code that a run follows from."""
    modules = (
        data_stage,
        target_stage,
        examination,
        signals_stage,
        references_stage,
        attack_stage,
        layers_stage,
        metrics_stage,
    )
    names = [module.__name__ for module in modules]
    return _code((*names, __name__), (config,))


def _code(modules: tuple[str, ...], parts: tuple[Any, ...]) -> str:
    """The version of stages' modules and of those that define the parts of the config."""
    return code_version(*sorted({*modules, *modules_of(parts)}))


def modules_of(part: Any) -> Iterator[str]:
    """The modules that define the types of a config, as Python names them."""
    if isinstance(part, tuple):
        for item in part:
            yield from modules_of(item)
    elif dataclasses.is_dataclass(part):
        yield type(part).__module__
        for field in dataclasses.fields(part):
            yield from modules_of(getattr(part, field.name))


def _files(part: Any) -> tuple[Path, ...]:
    return part.files() if hasattr(part, "files") else ()
