"""The graph of stages: which part of a config and which files each one follows from."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.attacks.suite import asked_of_references, spec_of, union_of_specs
from jaxmeter.auditing.assembly import accuracy_of
from jaxmeter.auditing.layers import READS, completed, completed_for_references, read_of
from jaxmeter.data.records import Records
from jaxmeter.experiment.config import Config, Pool, TargetFile
from jaxmeter.experiment.serialization import plain
from jaxmeter.experiment.stages import attack as attack_stage
from jaxmeter.experiment.stages import data as data_stage
from jaxmeter.experiment.stages import examination, pool_records, pool_signals
from jaxmeter.experiment.stages import layers as layers_stage
from jaxmeter.experiment.stages import metrics as metrics_stage
from jaxmeter.experiment.stages import pool as pool_stage
from jaxmeter.experiment.stages import references as references_stage
from jaxmeter.experiment.stages import signals as signals_stage
from jaxmeter.experiment.stages import target as target_stage
from jaxmeter.experiment.stages.data import Splits
from jaxmeter.experiment.stages.examination import TargetLocation
from jaxmeter.experiment.store.fingerprint import code_version, surroundings
from jaxmeter.experiment.store.store import Entry, Store, key_of
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.report.result import LayerRanking
from jaxmeter.shadow import stacked
from jaxmeter.shadow.architecture import Architecture, of_file
from jaxmeter.signals.spec import ResolvedSpec, Signals, SignalSpec
from jaxmeter.target import Target, TargetSpec

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
    opened: Callable[[], Target]  # the target, for a stage that has to see it
    content: list[str]  # hashes of the files that it is opened from
    spec: TargetSpec
    wanted: ResolvedSpec
    reads: list[ResolvedSpec | None]
    extracted: Entry
    trained: Entry | None = None
    # Of a pool: its models, which of these is the target, and which the references.
    models: Entry | None = None
    model: int | None = None
    chosen_models: tuple[int, ...] | None = None
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
        self.pool = config.target if isinstance(config.target, Pool) else None
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
        return data_stage.drawn(**self.draw).records._replace(is_member=self.dealt.is_member)

    def shown(self, stage: str) -> Callable[[int, int], None] | None:
        """How a stage tells how far it is."""
        return self.progress and partial(self.progress, stage)

    def records(self) -> None:
        """Members and non-members, and the parts they are dealt into."""
        config, pool = self.config, self.pool
        follows = {"seed": config.seed, "files": list(self.draw["contents"])}
        how: dict[str, Any] = {**self.draw, "fractions": config.fractions}
        parts: tuple[Any, ...] = (config.data, config.fractions)
        if pool is None:
            parts = (*parts, config.overlap)
            deal = partial(data_stage.deal, **how, overlap=config.overlap)
        else:
            odd = pool.stranger and (pool.stranger.members,)
            parts = (*parts, pool.models, pool.index, odd)
            deal = partial(pool_records.deal, **how, pool=pool)
        module = data_stage if pool is None else pool_records
        entry = self.obtain("records", module, parts, follows, deal)
        self.dealt = dealt = data_stage.dealt(entry.folder)
        self.files = {"records": dealt.everything, "split": entry.files["split.npz"]}
        self.chosen = data_stage.known_rows(dealt, known=config.known, seed=config.seed)
        self.index: Any = tuple(
            part[rows] for part, rows in zip(dealt.parts, self.chosen, strict=True)
        )
        if pool is None:  # signals are of the records of the parts, part by part
            self.used = np.concatenate(dealt.parts)
            starts = np.cumsum([0, *(part.size for part in dealt.parts[:-1])])
            self.rows = [a + rows for a, rows in zip(starts, self.chosen, strict=True)]
        else:  # of all records, as they come, whatever the parts
            self.used, self.rows = np.arange(len(dealt.y)), list(self.index)
        self.notes += dealt.notes

    def train_pool(self) -> None:
        """The models of a pool, of which the target is one."""
        pool, seed = self.pool, self.config.seed
        if pool is None:
            return
        self.architecture, self.built, self.built_from = self.architecture_of(pool.architecture)
        stranger, index = pool.stranger, pool.index
        follows = {"records": self.dealt.content, **self.built_from, "seed": seed}

        def train(folder: Path) -> None:
            pool_stage.train(
                folder,
                architecture=self.architecture(),
                recipe=pool.recipe,
                models=pool.models,
                records=self.drawn(),
                seed=seed,
                progress=self.shown("pool"),
            )

        parts = (pool.models, pool.recipe, *self.built)
        self.models = self.obtain("pool", pool_stage, parts, follows, train)
        if stranger is None:
            self.origin, self.model = f"model {index} of a pool of {pool.models}", index
            return

        def train_stranger(folder: Path) -> None:
            pool_stage.train_stranger(
                folder,
                architecture=self.architecture(),
                stranger=stranger,
                index=index,
                records=self.drawn(),
                seed=seed,
                progress=self.shown("target"),
            )

        parts = (stranger, index, *self.built)
        entry = self.obtain("target", pool_stage, parts, follows, train_stranger)
        self.origin = f"model {index} apart from a pool of {pool.models}"
        self.content = [f"{name} {found}" for name, found in sorted(entry.files.items())]
        self.opened = lambda: stacked.model(
            pool_stage.trained(entry.folder, self.architecture()), 0
        )

    def target(self) -> None:
        """The classifier: from a file, or trained on the members."""
        recipe, seed = self.config.target, self.config.seed
        if isinstance(recipe, Pool):
            return
        if isinstance(recipe, TargetFile):
            content = tuple(self.contents[str(path)] for path in recipe.files())
            self.origin = recipe.path.as_posix()
            self.place = TargetLocation(
                recipe.path, recipe.head, recipe.weights, recipe.trust, content
            )
        else:
            n_classes = self.n_classes

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
        place = self.place
        self.content = list(place.content)
        self.opened = lambda: examination.opened(place, self.dealt.shape)[0]

    def intake(self) -> None:
        """What there is in the target, and what attacks and the layer map read of it."""
        origin, shape = self.origin, self.dealt.shape
        follows: dict[str, Any] = {"origin": origin, "shape": list(shape)}
        if self.pool is None:
            place = self.place
            self.how: tuple[Any, ...] = (place.head, place.trust, place.path.suffix)
            follows["content"] = self.content
            examine = partial(examination.examine, place=place, shape=shape, origin=origin)
        else:
            self.how = self.built
            follows |= self.built_from
            examine = partial(pool_stage.examine, self.architecture, shape=shape, origin=origin)
        module = examination if self.pool is None else pool_stage
        entry = self.obtain("intake", module, self.how, follows, examine)
        self.spec, notes = examination.examined(entry.folder)
        self.notes += notes
        self.asked = examination.unloaded(self.spec)
        self.reads = [spec_of(attack, self.asked) for attack in self.config.attacks]
        self.wanted = completed(union_of_specs(self.reads, self.asked), self.asked)
        if self.pool and self.pool.spec:
            more = self.pool.spec.resolved(self.asked)
            self.wanted = completed(more.union(self.wanted), self.asked)

    def signals(self) -> None:
        """What is read of the target, computed once for all attacks."""
        if self.model is not None:
            return  # they are among those of the pool

        def extract(folder: Path) -> None:
            signals_stage.compute(
                folder,
                target=self.opened(),
                records=self.drawn().rows(self.used),
                spec=self.wanted,
                device_budget=self.budget,
                progress=self.shown("signals"),
            )

        self.extracted = self.obtain(
            "signals",
            signals_stage,
            (self.wanted, self.config.device_mib, *self.how),
            {**self.files, "target": self.content},
            extract,
        )

    def references(self) -> None:
        """What models that are trained on these records say of them."""
        config, references = self.config, self.config.references
        if self.pool is not None:
            self.see_pool(self.pool)
        if references is None:
            return
        what = references.architecture
        if what is None:
            place = self.place
            architecture: Callable[[], Architecture] = partial(
                of_file, place.path, trust=place.trust
            )
            how: tuple[Any, ...] = (place.trust, place.path.suffix)
            of_models: dict[str, Any] = {"architecture": place.content[0]}
        else:
            architecture, how, of_models = self.architecture_of(what)
        asked = completed_for_references(asked_of_references(config.attacks, self.asked))
        plan = references_stage.ReferencePlan(architecture, references.recipe, references.k, asked)

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

    def see_pool(self, pool: Pool) -> None:
        """What all models of a pool say of all records: of the target, and of its references."""
        entry, seed = self.models, self.config.seed
        assert entry is not None

        def look(folder: Path) -> None:
            pool_signals.look(
                folder,
                models=pool_stage.trained(entry.folder, self.architecture()),
                records=self.drawn(),
                spec=self.wanted,
                seed=seed,
                device_budget=self.budget,
                progress=self.shown("pool_signals"),
            )

        self.trained = self.obtain(
            "pool_signals",
            pool_signals,
            (self.wanted, self.config.device_mib, *self.built),
            {"records": self.dealt.content, "models": dict(entry.files), "seed": seed},
            look,
        )
        self.notes += references_stage.notes(self.trained.folder)
        self.chosen_models = pool.references
        if self.model is not None:
            self.extracted = self.trained

    def architecture_of(
        self, what: Any
    ) -> tuple[Callable[[], Architecture], tuple[Any, ...], dict[str, Any]]:
        """What models are made of; config and files that it follows from."""
        if isinstance(what, TargetFile):
            content = self.contents[str(what.path)]
            how: tuple[Any, ...] = (what.trust, what.path.suffix)
            return partial(of_file, what.path, trust=what.trust), how, {"architecture": content}
        made = partial(
            references_stage.built,
            what,
            self.dealt.shape,
            n_classes=self.n_classes,
            seed=self.config.seed,
        )
        return made, (what,), {"classes": self.n_classes}

    @property
    def n_classes(self) -> int:
        """As many as the labels count."""
        return int(self.dealt.y.max()) + 1

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
                signals=self.target_signals(),
                seen=self.seen() if models else None,
                parts=tuple(  # type: ignore[arg-type]
                    attack_stage.AttackRows(records.rows(i), rows)
                    for i, rows in zip(self.index, self.rows, strict=True)
                ),
                seed=seed,
            )

        follows = {**self.files, "signals": self.read_files(read), "seed": seed}
        if models and (asks := attack.reads(self.asked)):
            follows["references"] = self.read_references(asks)
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
            rows = self.rows[2]
            seen = self.seen() if models else None
            layers_stage.rank(
                folder,
                signals=self.target_signals().only(read).rows(rows),
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
            follows["references"] = self.read_references(READS)
        entry = self.obtain("layers", layers_stage, (read,), follows, rank)
        self.ranking, notes = layers_stage.ranked(entry.folder, is_member)
        self.notes += notes

    def metrics(self) -> None:
        """Every figure."""
        config, made, dealt = self.config, self.made, self.dealt
        signals = self.target_signals()
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
        files = signals_stage.read_files(self.extracted.folder, self.extracted.files, spec)
        return files if self.model is None else {**files, "model": str(self.model)}

    def read_references(self, spec: SignalSpec) -> dict[str, Any]:
        """Hashes of the reference models' signals that a spec reads."""
        assert self.trained is not None
        files = references_stage.read_files(self.trained.folder, self.trained.files, spec)
        chosen = self.chosen_models
        return files if chosen is None else {**files, "models": list(chosen)}

    def target_signals(self) -> Signals:
        """The records as the target sees them."""
        return signals_stage.loaded(self.extracted.folder, self.model)

    def seen(self) -> ReferenceSignals:
        """The records as the reference models see them."""
        assert self.trained is not None
        return references_stage.seen(self.trained.folder, self.chosen_models)


STAGES = (
    _Run.records,
    _Run.train_pool,
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
        pool_records,
        pool_stage,
        pool_signals,
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
