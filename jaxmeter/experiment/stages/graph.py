"""The graph of stages: which part of a config and which files each one follows from."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmeter.attacks.suite import asked_of_references, spec_of, union_of_specs
from jaxmeter.auditing.assembly import accuracy_of
from jaxmeter.auditing.layers import READS, completed, completed_for_references, read_of
from jaxmeter.data.records import Records
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
from jaxmeter.experiment.store.store import Entry, Store, key_of
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.report.result import LayerRanking
from jaxmeter.shadow.architecture import Architecture, of_file
from jaxmeter.signals.spec import ResolvedSpec
from jaxmeter.target import TargetSpec

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

    run = _Run(config, store, contents, made, progress)
    for stage in STAGES:
        stage(run)
    return made


class Ahead(NamedTuple):
    """How far a run has come in a store.

    Attributes:
      keys: the keys of its stages by label: of those that are there, and of the first that is not.
      first: the key of the first that is not there; None if all are.
      place: where that will lie.
    """

    keys: Mapping[str, str]
    first: str | None
    place: Path | None

    def is_there(self) -> bool:
        """Whether the first that was not there is there now."""
        return self.place is not None and self.place.exists()


def ahead(
    config: Config,
    store: Store,
    contents: Mapping[str, str],
    surrounded: Mapping[str, str] | None = None,
) -> Ahead:
    """Which stages of a run are in the store, and which is the first that is not.

    Later ones have no keys yet, which follow from what the earlier ones give. Entries are taken
    for what they say they are, so this is for planning alone.

    Args:
      config, store, contents: as of `make`.
      surrounded: the `surroundings` in which it will run; by default those of this process.
    """
    at: list[str] = []

    class Looked:
        def obtain(self, stage: str, ingredients: Mapping[str, Any], compute: Any) -> Entry:
            found = store.glanced(stage, key := key_of(stage, ingredients))
            if found is None:
                raise _NotThere(key, store.folder(stage, key))
            return found

    made = Entries()
    run = _Run(config, Looked(), contents, made, lambda label, *_: at.append(label), surrounded)
    try:
        for stage in STAGES:
            stage(run)
    except _NotThere as first:
        key, place = first.args
        return Ahead({**_keys(made), at[-1]: key}, key, place)
    except Exception:  # what is there is not as it was written; the run will say it
        return Ahead(_keys(made), None, None)
    return Ahead(_keys(made), None, None)


class _NotThere(Exception):
    """A stage that is not in the store: its key, and where it would be."""


def _keys(made: Entries) -> dict[str, str]:
    return {label: entry.key for label, entry in made.items()}


class _Run:
    """A run on its way: each stage obtains its entries, and keeps what later stages need."""

    dealt: Splits
    place: TargetLocation
    origin: str
    spec: TargetSpec
    wanted: ResolvedSpec
    reads: list[ResolvedSpec | None]
    extracted: Entry
    trained: Entry | None = None
    ranking: LayerRanking | None = None

    def __init__(
        self,
        config: Config,
        store: Any,
        contents: Mapping[str, str],
        made: Entries,
        progress: Progress | None,
        surrounded: Mapping[str, str] | None = None,
    ) -> None:
        self.surrounded = surroundings() if surrounded is None else dict(surrounded)
        self.config, self.store, self.contents = config, store, contents
        self.made, self.progress = made, progress
        of_data = tuple(contents[str(path)] for path in _files(config.data))
        self.draw: dict[str, Any] = {
            "data": config.data,
            "seed": config.seed,
            "contents": of_data,
        }
        self.budget = config.device_mib * 2**20
        self.notes: list[str] = []
        self.outputs: list[tuple[Any, ResolvedSpec | None, attack_stage.StoredOutput]] = []

    def obtain(self, label: str, module: Any, parts: tuple, follows: Any, compute: Any) -> Entry:
        """The entry of a stage: `parts` of the config and `follows` are what its key is of."""
        stage = label.partition(":")[0]
        ingredients = {
            "code": _code((module.__name__,), parts),
            "surroundings": self.surrounded,
            "config": [plain(part) for part in parts],
            "follows from": follows,
        }
        if self.progress:
            self.progress(label, 0, 1)
        try:
            entry = self.store.obtain(stage, ingredients, compute)
        except Exception as error:
            error.add_note(f"in stage {label}")
            raise
        if self.progress:
            self.progress(label, 1, 1)
        self.made[label] = entry
        return entry

    def drawn(self) -> Records:
        """All records, read when a stage needs them."""
        return data_stage.drawn(**self.draw).records

    def shown(self, stage: str) -> Callable[[int, int], None] | None:
        """How a stage tells how far it is."""
        return self.progress and partial(self.progress, stage)

    def records(self) -> None:
        """Members and non-members, and the parts they are dealt into."""
        config = self.config
        how: dict[str, Any] = {"fractions": config.fractions, "overlap": config.overlap}
        entry = self.obtain(
            "records",
            data_stage,
            (config.data, config.fractions, config.overlap),
            {"seed": config.seed, "files": list(self.draw["contents"])},
            partial(data_stage.deal, **self.draw, **how),
        )
        self.dealt = dealt = data_stage.dealt(entry.folder)
        self.used = np.concatenate(dealt.parts)
        self.files = {"records": dealt.everything, "split": entry.files["split.npz"]}
        self.chosen = data_stage.known_rows(dealt, known=config.known, seed=config.seed)
        self.starts = np.cumsum([0, *(part.size for part in dealt.parts)])
        self.index: Any = tuple(
            part[rows] for part, rows in zip(dealt.parts, self.chosen, strict=True)
        )
        self.notes += dealt.notes

    def target(self) -> None:
        """The classifier: from a file, or trained on the members."""
        recipe, seed = self.config.target, self.config.seed
        if isinstance(recipe, TargetFile):
            content = tuple(self.contents[str(path)] for path in recipe.files())
            self.origin = recipe.path.as_posix()
            self.place = TargetLocation(
                recipe.path, recipe.head, recipe.weights, recipe.trust, content
            )
            return
        n_classes = int(self.dealt.y.max()) + 1

        def train(folder: Path) -> None:
            records = self.drawn()
            members = records.rows(records.is_member)
            target_stage.train(
                folder, recipe=recipe, members=members, n_classes=n_classes, seed=seed
            )

        follows = {"members": self.dealt.members, "classes": n_classes, "seed": seed}
        entry = self.obtain("target", target_stage, (recipe,), follows, train)
        file = target_stage.FILE
        self.origin = f"trained as {type(recipe).__name__}"
        self.place = TargetLocation(entry.folder / file, (), None, False, (entry.files[file],))

    def intake(self) -> None:
        """What there is in the target, and what attacks and the layer map read of it."""
        place, origin, shape = self.place, self.origin, self.dealt.shape
        self.how = (place.head, place.trust, place.path.suffix)
        follows = {"content": list(place.content), "origin": origin, "shape": list(shape)}
        examine = partial(examination.examine, place=place, shape=shape, origin=origin)
        entry = self.obtain("intake", examination, self.how, follows, examine)
        self.spec, notes = examination.examined(entry.folder)
        self.notes += notes
        self.asked = examination.unloaded(self.spec)
        self.reads = [spec_of(attack, self.asked) for attack in self.config.attacks]
        self.wanted = completed(union_of_specs(self.reads, self.asked), self.asked)

    def signals(self) -> None:
        """What is read of the target, computed once for all attacks."""

        def extract(folder: Path) -> None:
            signals_stage.compute(
                folder,
                target=examination.opened(self.place, self.dealt.shape)[0],
                records=self.drawn().rows(self.used),
                spec=self.wanted,
                device_budget=self.budget,
                progress=self.shown("signals"),
            )

        self.extracted = self.obtain(
            "signals",
            signals_stage,
            (self.wanted, self.config.device_mib, *self.how),
            {**self.files, "target": list(self.place.content)},
            extract,
        )

    def references(self) -> None:
        """What models that are trained on these records say of them."""
        config = self.config
        if config.references is None:
            return
        plan, how, of_models = _plan(
            config, config.references, self.contents, self.dealt, self.place, self.asked
        )

        def train(folder: Path) -> None:
            references_stage.compute(
                folder,
                plan=plan,
                records=self.drawn().rows(self.used),
                seed=config.seed,
                device_budget=self.budget,
                progress=self.shown("references"),
            )

        self.trained = self.obtain(
            "references",
            references_stage,
            (plan.k, plan.recipe, plan.asked, config.device_mib, *how),
            {**self.files, **of_models, "seed": config.seed},
            train,
        )
        self.notes += references_stage.notes(self.trained.folder)

    def attacks(self) -> None:
        """One entry an attack."""
        for attack, read in zip(self.config.attacks, self.reads, strict=True):
            self.attack(attack, read)

    def attack(self, attack: Any, read: ResolvedSpec | None) -> None:
        """What one attack finds."""
        seed, models = self.config.seed, self.trained if attack.needs_references else None

        def run(folder: Path) -> None:
            records = self.drawn()
            attack_stage.attack(
                folder,
                config=attack,
                spec=read,
                signals=signals_stage.loaded(self.extracted.folder),
                seen=references_stage.seen(models.folder) if models else None,
                parts=tuple(  # type: ignore[arg-type]
                    attack_stage.AttackRows(records.rows(i), start + rows)
                    for i, start, rows in zip(
                        self.index, self.starts[:-1], self.chosen, strict=True
                    )
                ),
                seed=seed,
            )

        follows = {**self.files, "signals": self.read_files(read), "seed": seed}
        if models and (asks := attack.reads(self.asked)):
            follows["references"] = references_stage.read_files(models.folder, models.files, asks)
        parts = (attack, read, self.config.known)
        entry = self.obtain(f"attack:{attack.name}", attack_stage, parts, follows, run)
        came = attack_stage.came(entry.folder)
        self.outputs.append((attack, read, came))
        self.notes += came.notes

    def layers(self) -> None:
        """What each gives away by itself, where the signals say something of layers."""
        read, models = read_of(self.wanted), self.trained
        if read is None:
            return
        held = self.dealt.parts[2]
        y, is_member = self.dealt.y[held], self.dealt.is_member[held]

        def rank(folder: Path) -> None:
            rows = slice(self.starts[2], self.starts[3])
            seen = references_stage.seen(models.folder) if models else None
            layers_stage.rank(
                folder,
                signals=signals_stage.loaded(self.extracted.folder).only(read).rows(rows),
                seen=seen and seen.rows(rows),
                y=y,
                is_member=is_member,
                target=self.spec,
            )

        follows = {
            "split": self.files["split"],
            "target": self.made["intake"].files["target.json"],
            "signals": self.read_files(read),
        }
        if models:
            follows["references"] = references_stage.read_files(models.folder, models.files, READS)
        entry = self.obtain("layers", layers_stage, (read,), follows, rank)
        self.ranking, notes = layers_stage.ranked(entry.folder, is_member)
        self.notes += notes

    def metrics(self) -> None:
        """Every figure."""
        config, made, dealt = self.config, self.made, self.dealt
        signals = signals_stage.loaded(self.extracted.folder)
        size = tree_bytes(signals)

        def score(folder: Path) -> None:
            metrics_stage.score(
                folder,
                attacks=self.outputs,
                target=self.spec,
                is_member=dealt.is_member,
                y=dealt.y,
                parts=self.index,
                accuracy=accuracy_of(signals, dealt.is_member[self.used]),
                layers=self.ranking,
                signal_bytes=size,
                notes=self.notes,
            )

        follows = {
            **self.files,
            "target": made["intake"].files["target.json"],
            "signals": self.read_files(union_of_specs([], self.asked)),
            "seed": config.seed,
            "found": [dict(made[f"attack:{attack.name}"].files) for attack in config.attacks],
            "layers": dict(made["layers"].files) if "layers" in made else None,
            "signal bytes": size,
            "notes": self.notes,
        }
        described = tuple((attack, attack.fits) for attack in config.attacks)
        parts = (described, tuple(self.reads), config.known)
        self.obtain("metrics", metrics_stage, parts, follows, score)

    def read_files(self, spec: ResolvedSpec | None) -> dict[str, str]:
        """Hashes of the target's signals that a spec reads."""
        return signals_stage.read_files(self.extracted.folder, self.extracted.files, spec)


STAGES = (
    _Run.records,
    _Run.target,
    _Run.intake,
    _Run.signals,
    _Run.references,
    _Run.attacks,
    _Run.layers,
    _Run.metrics,
)


def most_stages(config: Config) -> int:
    """How many stages a run has at most: a target from a file is not trained, for example."""
    return len(STAGES) - 1 + len(config.attacks)


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
