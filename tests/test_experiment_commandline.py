"""What words of a study's command line make of its config and axes."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tyro

import jaxmeter as jm
from jaxmeter import experiment
from jaxmeter.experiment.cli import variants

BASE = experiment.Config(
    study="words",
    seed=0,
    target=experiment.Mlp(widths=(3,), training=experiment.Training(epochs=7)),
    attacks=(
        jm.NegativeLoss(),
        jm.Learned(config=jm.FitConfig(epochs=3)),
        jm.Learned(spec=jm.SignalSpec()),
    ),
)


def of(*words: str) -> list[variants.Option]:
    before, options = variants.split(words)
    assert before == []
    return options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--target mlp", BASE),  # BASE's own, with its fields
        ("--target cnn", replace(BASE, target=experiment.Cnn())),
        ("--target=Cnn", replace(BASE, target=experiment.Cnn())),
        ("--target.initial normal",
         replace(BASE, target=replace(BASE.target, initial=experiment.Normal()))),
        ("--target.initial normal --target cnn",
         replace(BASE, target=experiment.Cnn(initial=experiment.Normal()))),
        ("--attacks blind white-box", replace(BASE, attacks=(jm.Blind(), BASE.attacks[1]))),
        ("--attacks black-box", replace(BASE, attacks=BASE.attacks[2:])),
        ("--attacks.0 entropy", replace(BASE, attacks=(jm.Entropy(), *BASE.attacks[1:]))),
        ("--attacks.0.spec none --attacks black-box",  # what is outside goes first
         replace(BASE, attacks=(replace(BASE.attacks[2], spec=None),))),
    ],
)  # fmt: skip
def test_variants_are_chosen_by_name(words, expected):
    assert variants.chosen(BASE, of(*words.split())) == (expected, [])


def test_other_options_are_left_as_they_were():
    words = ["--seed", "3", "--target", "cnn", "--target.filters", "8", "-1", "--known=4"]
    _, left = variants.chosen(BASE, of(*words))
    assert [w for o in left for w in o.given] == [*words[:2], *words[4:]]
    needy, _ = variants.chosen(BASE, of("--target", "target-file"))
    assert needy.target.path is tyro.MISSING and needy.target.head == ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--axes.seed 5", {"seed": (5,), "known": (10,)}),
        ("--axes.known none 3", {"seed": (0, 1), "known": (None, 3)}),
        ("--axes.target.training.batch-size 8", {"target.training.batch_size": (8,)}),
        ("--axes.target.training.learning-rate 1e-3 2",
         {"target.training.learning_rate": (1e-3, 2.0)}),
        ("--axes.target.widths 32 64,32", {"target.widths": ((32,), (64, 32))}),
        ("--axes.fractions .4,.1,.5", {"fractions": ((0.4, 0.1, 0.5),)}),
        ("--axes.target mlp cnn", {"target": (BASE.target, experiment.Cnn())}),
        ("--axes.attacks.1 white-box blind", {"attacks.1": (BASE.attacks[1], jm.Blind())}),
        ("--axes.overlap drop", {"overlap": ("drop",)}),
    ],
)  # fmt: skip
def test_axes_have_the_types_of_their_fields(words, expected):
    given, others = variants.apart(of(*words.split()))
    found = variants.swept(BASE, {"seed": (0, 1), "known": (10,)}, given)
    assert found == {"seed": (0, 1), "known": (10,), **expected} and others == []
    for name, values in expected.items():
        kinds = [type(value) for value in values]
        assert [type(value) for value in found[name]] == kinds
    assert experiment.expand(BASE, found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--target cn",
            "--target cn: it takes target-file, mlp, cnn, alex-net, pool. The nearest: cnn",
        ),
        ("--target cnn mlp", "--target takes one of"),
        ("--attacks negative-los", "The nearest: negative-loss"),
        ("--attacks learned", "the study has 2 of them.*white-box, black-box"),
        ("--axes.sead 1", "no field 'sead'.*nearest: seed"),
        ("--axes.target.width 1", "no field 'target.width'.*nearest: target.widths"),
        ("--axes.seed 0.5", "--axes.seed 0.5: it takes int"),
        ("--axes.known some", "it takes int or None"),
        ("--axes.target.widths 3,a", r"it takes a tuple of \(int, ...\)"),
        ("--axes.fractions 1,2", "it takes a tuple of"),
        ("--axes.overlap dropp", "it takes 'error' or 'drop'"),
        ("--axes.target.training 3", "sweep one of its fields, e.g. --axes.target.training.epochs"),
        ("--axes.target target-file", "a target-file needs path"),
        ("--axes.seed", "it takes a value or more"),
        ("--seed 3", "seed is an axis of this study.*--axes.seed"),
        ("--attacks.1 entropy", "attacks.1 is an axis of this study"),
        ("--axes.known 3 --attacks.1.config.epochs 2", "attacks.1 is an axis"),
    ],
)
def test_wrong_words_are_refused(words, said, capsys, tmp_path):
    axes = {"seed": (0, 1), "attacks.1": (jm.Blind(),)}
    with pytest.raises(SystemExit) as ended:
        experiment.main(BASE, axes, ["sweep", *words.split(), "--store", str(tmp_path)])
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_a_list_of_runs_has_no_axes_to_change(capsys):
    with pytest.raises(SystemExit):
        experiment.main(BASE, ({"seed": 1},), ["sweep", "--axes.seed", "3"])
    assert "AXES of this study is a list of runs" in capsys.readouterr().err


def test_help_says_which_variants_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        experiment.main(BASE, {"seed": (0,)}, ["sweep", "--target", "cnn", "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("--target target-file|mlp|cnn", "--target.filters", "seed (1 value)", "blind"):
        assert text in said


@dataclass(frozen=True, kw_only=True)
class Small(experiment.Digits):
    """Few records, so that a run is quick."""

    members: int = 60
    nonmembers: int | None = 60


def test_a_run_and_a_sweep_of_chosen_variants(tmp_path, capsys):
    base = replace(BASE, data=Small(), target=experiment.Mlp(widths=(2,)), attacks=(jm.Blind(),))
    words = ["--store", str(tmp_path), "--attacks", "negative-loss", "--target.training.epochs"]
    experiment.main(base, {}, ["run", *words, "1", "--target", "mlp", "--target.widths", "4", "3"])
    folder = Path(capsys.readouterr().out.strip())
    fields = json.loads((folder / "config.json").read_bytes())["fields"]
    assert fields["target.widths"] == "4, 3" and fields["attacks"] == "negative loss"
    experiment.main(base, {}, ["sweep", *words, "1", "--axes.target.widths", "4,3", "5"])
    said = capsys.readouterr().err
    assert f"1/2 {folder.name} done" in said and "as it was" in said and "2/2" in said
