"""`initialize`, `train_attack`, `test_attack`: ML Privacy Meter's attack over this package's."""

import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxmeter.auditing.assembly import noted
from jaxmeter.auditing.rows import counts
from jaxmeter.data.records import Records
from jaxmeter.data.splits import split
from jaxmeter.inference.attack import Attack, Fitted, fit, inference_model
from jaxmeter.inference.released import released_model
from jaxmeter.meter.handlers import attack_data, without
from jaxmeter.meter.layers import Numbered, counterparts, numbered, spec_of
from jaxmeter.meter.optimizers import optimizer_of
from jaxmeter.prng import stream
from jaxmeter.report.report import Report
from jaxmeter.signals.extraction import extract
from jaxmeter.signals.spec import ResolvedSpec, Signals, SignalSpec
from jaxmeter.target import Target

_SELECT = 0.15  # of the known records, for the best epoch and the threshold
_FOLDS = 5
Architecture = Literal["jaxmeter", "2020"]


class initialize:  # noqa: N801 (that tool's name)
    """An attack on a target: fitted on records of known membership, measured on others.

    Args:
      target_train_model: the classifier that the attack is fitted on: a Keras model, a path, or a
        `Target`.
      target_attack_model: the classifier that it is tested on; often the same. Another
        architecture can be attacked by its outputs, loss and label.
      train_datahandler: the data of the first; its known records fit the attack.
      attack_datahandler: the data of the second; its test records, less all that the attacker
        knows, are what everything is measured on.
      device: where to compute: a JAX device, a platform's name such as "cpu", or None.
      optimizer: "sgd", "adam", "adadelta", "adagrad", "momentum" or "rmsprop".
      model_name: names the run under `logs`; a second one of a name gets a number.
      layers_to_exploit: 1-based numbers in `model.layers`, or names, of layers whose outputs are
        read.
      gradients_to_exploit: 1-based numbers among the layers with trainable variables, or names, of
        layers whose gradients are read. Any kind of layer, any number of them.
      exploit_loss: whether the loss is read.
      exploit_label: whether the label is read.
      learning_rate: the optimiser's, constant.
      epochs: passes over the records that fit the attack.
      architecture: "jaxmeter" for `inference_model`, "2020" for `released_model`.
      seed: everything random follows from it.
      logs: the folder of logs, plots and results.

    Attributes:
      report: the last `test_attack`'s `Report`, with the loss threshold beside the attack.
      fitted: the last `train_attack`'s fit.

    Raises:
      ValueError: for a number or name that does not exist (listing those that do), another
        optimiser, nothing to exploit, or two models that do not have what the attack reads.
    """

    def __init__(  # noqa: D107
        self,
        target_train_model: Any,
        target_attack_model: Any,
        train_datahandler: attack_data,
        attack_datahandler: attack_data,
        device: Any = None,
        optimizer: str = "adam",
        model_name: str = "sample_model",
        layers_to_exploit: Sequence[int | str] | None = None,
        gradients_to_exploit: Sequence[int | str] | None = None,
        exploit_loss: bool = True,
        exploit_label: bool = True,
        learning_rate: float = 0.001,
        epochs: int = 100,
        *,
        architecture: Architecture = "jaxmeter",
        seed: int = 0,
        logs: str | PathLike[str] = "logs",
    ) -> None:
        if architecture not in ("jaxmeter", "2020"):
            raise ValueError(f"architecture is {architecture!r}; it is 'jaxmeter' or '2020'.")
        self.released = architecture == "2020"
        self.train_model = numbered(target_train_model)
        self.attack_model = (
            self.train_model
            if target_attack_model is target_train_model
            else numbered(target_attack_model)
        )
        self.train_datahandler, self.attack_datahandler = train_datahandler, attack_datahandler
        self.spec = spec_of(
            _filled(self.train_model, train_datahandler),
            layers_to_exploit,
            gradients_to_exploit,
            loss=exploit_loss,
            label=exploit_label,
            released=self.released,
        )
        self.names = counterparts(
            _filled(self.train_model, train_datahandler),
            _filled(self.attack_model, attack_datahandler),
            self.spec,
        )
        self.optimizer = optimizer_of(optimizer, learning_rate)
        self.settings = {
            "optimizer": str(optimizer).lower(),
            "learning_rate": learning_rate,
            "epochs": epochs,
            "architecture": architecture,
            "seed": seed,
            "layers_to_exploit": list(layers_to_exploit or ()),
            "gradients_to_exploit": list(gradients_to_exploit or ()),
            "exploit_loss": exploit_loss,
            "exploit_label": exploit_label,
        }
        self.epochs = epochs
        self.key = jax.random.key(seed)
        self.device = jax.devices(device)[0] if isinstance(device, str) else device
        self.logs, self.model_name = Path(logs), model_name
        self.attack: Attack = released_model() if self.released else inference_model()
        self.known, self.test, self.removed = _dealt(train_datahandler, attack_datahandler)
        self.fitted: Fitted | None = None
        self.report: Report | None = None
        self._places: Any = None
        self._trained: Any = None
        self._notes: list[str] = []

    @property
    def run(self) -> str:
        """The run's name under `logs`, once it is trained: `model_name`, numbered if need be."""
        if self._places is None:
            raise RuntimeError("the run has no name yet: call train_attack() first.")
        return str(self._places.name)

    def train_attack(self) -> Fitted:
        """Fits the attack on the known records; the epoch is chosen among these too.

        Writes the log and TensorBoard's scalars: loss, accuracy, AUC, one step an epoch.
        """
        from jaxmeter.meter import logs, reporting

        self._places = self._places or logs.claimed(self.logs, self.model_name)
        with logs.logger(self._places) as log:
            for name, value in self.settings.items():
                log.info("%s: %s", name, value)
            log.info("reads %s", ", ".join(_read(self.spec)))
            inside, outside = counts(self.known.is_member)
            log.info("fitting on %d members and %d non-members", inside, outside)
            parts = split(
                stream(self.key, "select"), self.known, (1 - _SELECT, _SELECT), overlap="drop"
            )
            start = time.perf_counter()
            with jax.default_device(self.device), noted() as self._notes:
                target = self.train_model.target.for_inputs(self.known.x.shape[1:])
                every = _every(target, self.spec)
                fit_signals, select_signals = (
                    extract(target, self.train_datahandler.prepared(part), every) for part in parts
                )
                self.fitted = fit(
                    stream(self.key, "fit"),
                    self.attack,
                    fit_signals.only(self.spec),
                    parts[0].is_member,
                    optimizer=self.optimizer,
                    epochs=self.epochs,
                    batch_size=2 * self.train_datahandler.batch_size,
                    select=(select_signals.only(self.spec), parts[1].is_member),
                    folds=0 if self.released else _FOLDS,
                )
                scores = self.attack.score(self.fitted.params, select_signals.only(self.spec))
            self._trained = reporting.TrainedTarget(
                name=self._places.name,
                spec=self.spec,
                target=target,
                fitted=self.fitted,
                truth=(parts[0].is_member, parts[1].is_member),
                select_records=parts[1],
                select=select_signals,
                select_scores=np.asarray(scores, np.float64),
                seconds=time.perf_counter() - start,
            )
            history = self.fitted.history
            shown = history.loss, history.select_loss, history.select_accuracy, history.select_auc
            for epoch in range(1, self.epochs + 1):
                log.info(
                    "epoch %d: loss %.4f; on the known records that choose the epoch: loss %.4f, "
                    "accuracy %.4f, AUC %.4f",
                    epoch,
                    *(float(figures[epoch]) for figures in shown),
                )
            log.info("kept epoch %d of %d", self.fitted.best_epoch, self.epochs)
        logs.write_fit(self._places, self.fitted)
        return self.fitted

    def test_attack(self, *, files: bool = True) -> Report:
        """Measures the attack on the test records of `target_attack_model`, and writes all of it.

        `logs/results/<run>/`: `member_probs.npy`, `nonmember_probs.npy`, the records they belong to
        (`m_features`, `m_labels`, `nm_features`, `nm_labels`), `results.json` and `report/`.
        `logs/plots/<run>/`: the figures. With `files=False` only the log grows.

        Raises:
          RuntimeError: if the attack was not trained.
        """
        from jaxmeter.meter import logs, reporting

        if self.fitted is None or self._trained is None:
            raise RuntimeError("the attack has not been trained: call train_attack() first.")
        with logs.logger(self._places) as log, jax.default_device(self.device):
            inside, outside = counts(self.test.is_member)
            log.info(
                "testing on %d members and %d non-members%s",
                inside,
                outside,
                f"; {self.removed} that the attacker knows were left out" if self.removed else "",
            )
            with noted() as notes:
                start = time.perf_counter()
                mine = self._signals_of_test()
                seconds = time.perf_counter() - start
                scores = np.asarray(
                    self.attack.score(self.fitted.params, _renamed(mine, self.spec, self.names)),
                    np.float64,
                )
                finish = reporting.reported(
                    self._trained,
                    self.attack_model.target.for_inputs(self.test.x.shape[1:]),
                    self.test,
                    mine,
                    scores,
                    seconds=seconds,
                    settings=self.settings,
                    device=str(self.device or jax.local_devices()[0]),
                )
            self.report = finish(notes=[*self._notes, *notes])
            result = self.report.rows[0].result
            low, high = result.auc_interval()
            log.info(
                "attack accuracy %.4f, AUC %.4f (95%% interval %.4f to %.4f); loss threshold's AUC "
                "%.4f",
                *(result.accuracy, result.auc, low, high, self.report.rows[1].result.auc),
            )
        if files:
            reporting.write(self._places, self._trained, self.report, self.removed)
        return self.report

    def _signals_of_test(self) -> Signals:
        target = self.attack_model.target.for_inputs(self.test.x.shape[1:])
        theirs = ResolvedSpec(
            outputs=tuple(self.names[name] for name in self.spec.outputs),
            gradients=tuple(self.names[name] for name in self.spec.gradients),
            norms=(),
            loss=True,
            label=True,
        )
        return extract(target, self.attack_datahandler.prepared(self.test), _every(target, theirs))


def compare(*runs: initialize, logs: str | PathLike[str] | None = None) -> Path:
    """Draws the AUC and accuracy of several tested attacks, and their targets' accuracy.

    Args:
      *runs: attacks after `test_attack()`.
      logs: where to write `plots/comparison.png`, numbered if there is one; None for the first
        attack's logs.

    Returns:
      The figure's file.

    Raises:
      ValueError: if there is no run, or one was not tested.
    """
    from jaxmeter.meter.figures import ComparedRun, comparison_figure
    from jaxmeter.meter.logs import write_comparison

    shown = []
    for run in runs:
        if run.report is None:
            raise ValueError(f"{run.model_name!r} has not been tested: call test_attack() first.")
        row = run.report.rows[0]
        shown.append(ComparedRun(row.name, row.result, run.report.accuracy))
    if not shown:
        raise ValueError("there is no run to compare; pass what initialize() returned.")
    figure = comparison_figure(shown)
    return write_comparison(Path(runs[0].logs if logs is None else logs), figure)


def _filled(model: Numbered, handler: attack_data) -> Numbered:
    """The model with a target that knows its layers, by the shape of its records."""
    target: Target = model.target.for_inputs(handler.input_shape)
    return Numbered(target, model.layers or target.spec.layers)


def _dealt(train: attack_data, test: attack_data) -> tuple[Records, Records, int]:
    """Known records of the first handler, test records of the second that are not among them."""
    dealt = train.dealt()
    known, every = dealt.known, (dealt if test is train else test.dealt()).test
    kept = without(every, known)
    inside, outside = counts(kept.is_member)
    if min(inside, outside) < 2:
        raise ValueError(
            f"of the test records {inside} members and {outside} non-members are not known to the "
            "attacker already; at least 2 of each are needed. Give handlers with other records."
        )
    return known, kept, len(every.y) - len(kept.y)


def _renamed(signals: Signals, spec: ResolvedSpec, names: dict[str, str]) -> Signals:
    """The other model's signals under the names that the attack was fitted with."""
    return Signals(
        outputs={name: signals.outputs[names[name]] for name in spec.outputs},
        gradients={name: signals.gradients[names[name]] for name in spec.gradients},
        gradient_norms={},
        loss=signals.loss if spec.loss else None,
        label=signals.label if spec.label else None,
    )


def _every(target: Target, spec: ResolvedSpec) -> ResolvedSpec:
    """What the attack reads, and what the rows beside it in the report do."""
    return spec.union(SignalSpec(gradient_norm=True).resolved(target))


def _read(spec: ResolvedSpec) -> list[str]:
    said = [*spec.outputs, *(f"gradient of {name}" for name in spec.gradients)]
    return said + ["loss"] * spec.loss + ["label"] * spec.label
