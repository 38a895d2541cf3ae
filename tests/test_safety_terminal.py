"""Names that files choose do nothing to a terminal, and are seen for what they are."""

import codecs
import io
import json
import traceback
import unicodedata
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import keras
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from rich.table import Table
from rich.text import Text

import jaxmeter as jm
from jaxmeter import cli, experiment
from jaxmeter.experiment.cli import results
from jaxmeter.experiment.store.store import StoreWarning
from jaxmeter.report import findings
from jaxmeter.report.wording import clean, shortened
from jaxmeter.terminal import console, one_line, printable, printable_messages

# Erases the screen, sets the window's title, turns the direction of writing, hides itself, forges a
# line, is no text at all, is an escape sequence in one character, is rich's markup and an emoji.
NASTY = "a\x1b[2Jb\x1b]0;c\x07d\u202ee\u200bf\ng\u2028h\ud800i\x9b1mj\x7f[bold]k[/]l[/red]:bomb:"
SEEN = r"a\x1b[2Jb\x1b]0;c\x07d\u202ee\u200bf"


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


# --- Text ----------------------------------------------------------------------------------------


def test_what_has_no_shape_is_shown_by_its_number_and_all_else_as_it_is():
    every = [chr(i) for i in range(0x110000) if chr(i) != "\\"]
    shown = [printable(character) for character in every]
    shapeless = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
    for character, text in zip(every, shown, strict=True):
        if unicodedata.category(character) in shapeless and character != " ":
            assert text.startswith("\\") and text.isascii() and text.isprintable()
        elif text != character:
            hidden = "VARIATION SELECTOR", "FILLER", "JOINER", "INHERENT", "BLANK"
            assert any(part in unicodedata.name(character) for part in hidden)
        if text != character:
            assert codecs.decode(text, "unicode_escape") == character
    for character in "\u115f\u3164\uffa0\ufe0f\u180b\u2800\u034f\u17b4\U000e0100\u200d\ufeff\u2066":
        assert printable(character).isascii(), "invisible"


@given(st.text(st.characters(), max_size=40), st.integers(10, 30))
def test_printed_once_more_nothing_changes_and_nothing_is_longer(text: str, longest: int):
    shown = printable(text, longest)
    assert len(shown) <= longest and shown.isprintable()
    assert printable(shown, longest) == shown
    if len(text) <= longest and text.isascii() and text.isprintable():
        assert shown == text
    assert one_line(text).isprintable()


def test_both_ends_of_a_long_name_are_shown():
    shown = printable("begin" + "\x1b" * 1_000_000 + "end")
    assert len(shown) == 200 and shown.startswith("begin") and shown.endswith("end")
    assert one_line(" two\r\nlines\u2028and three ") == "two lines and three"


@pytest.mark.parametrize("wrap", [str, Text, lambda text: in_table(text)])
def test_a_console_prints_what_it_is_given(wrap):
    log = console(width=400)
    log.file = io.StringIO()
    log.print(wrap("[bold]x[/] [/] :bomb: a\x1b[2J\x9bb\u202e"), style="red")
    assert r"[bold]x[/] [/] :bomb: a\x1b[2J\x9bb\u202e" in log.file.getvalue()
    assert is_harmless(log.file.getvalue())


def in_table(text: str) -> Table:
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    return table


# --- Exceptions and warnings ---------------------------------------------------------------------


class Stubborn(Exception):
    def __str__(self) -> str:
        return NASTY


def noted(error: Exception) -> Exception:
    error.add_note(NASTY)
    return error


@pytest.mark.parametrize("outer", [ValueError(NASTY), noted(KeyError(NASTY)), Stubborn()])
@pytest.mark.parametrize(
    "inner",
    [
        RuntimeError(NASTY, 3),
        Stubborn(),
        SyntaxError("bad", (NASTY, 1, 1, NASTY)),
        ExceptionGroup("several", [ValueError(NASTY)]),
        UnicodeDecodeError("utf-8", b"\x1b", 0, 1, NASTY),
        FileNotFoundError(2, NASTY, NASTY),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("is_explicit", [True, False])
def test_a_traceback_is_harmless_down_to_its_first_cause(outer, inner, is_explicit):
    outer.__cause__ = outer.__context__ = None
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011 (any class, the text counts)
        with printable_messages():
            try:
                raise inner
            except Exception as error:
                if is_explicit:
                    raise outer from error
                raise outer  # noqa: B904
    text = "".join(traceback.format_exception(caught.value))
    assert is_harmless(text) and r"\x1b[2J" in str(caught.value)
    assert type(caught.value) is (ValueError if isinstance(outer, Stubborn) else type(outer))


def test_warnings_are_harmless_and_obey_the_filters_where_they_arose():
    def load() -> None:
        warnings.warn(NASTY, RuntimeWarning, stacklevel=2)
        warnings.warn("old", DeprecationWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        with printable_messages():
            load()
    (warning,) = caught
    assert warning.category is RuntimeWarning and warning.filename == __file__
    assert SEEN in str(warning.message) and is_harmless(str(warning.message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning) as raised, printable_messages():
            load()
    assert is_harmless(str(raised.value))


# --- Files ---------------------------------------------------------------------------------------


def classifier(name: str) -> onnx.ModelProto:
    """An ONNX model whose nodes, arrays, outputs and producer have this name."""
    kernel = numpy_helper.from_array(np.ones((4, 3), np.float32), f"{name}/kernel")
    nodes = [
        helper.make_node("MatMul", ["x", f"{name}/kernel"], [f"{name}/MatMul"], name=f"{name}/1"),
        helper.make_node("Relu", [f"{name}/MatMul"], [name], name=f"{name}/2"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [x], [y], [kernel])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(
        graph, producer_name=name, producer_version=name, opset_imports=opsets, ir_version=8
    )


NAME = NASTY.replace("\ud800", "")  # protobuf's texts have no surrogates


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A model of these names, in a file of such a name."""
    place = tmp_path_factory.mktemp("stranger")
    path = place / "[bold]m[/]\x1b[2J :bomb:\u202e.onnx"
    path.parent.mkdir()
    onnx.save(classifier(NAME), str(path))
    return path


def command(capsys, *arguments: object) -> tuple[str, int]:
    """Both streams of the command, and its exit code."""
    code = 0
    try:
        cli.main(list(map(str, arguments)))
    except SystemExit as end:
        code = int(end.code or 0)
    streams = capsys.readouterr()
    return streams.out + streams.err, code


def test_inspect_shows_names_and_does_not_print_them(file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shown, code = command(capsys, "inspect", file)
    assert code == 0 and is_harmless(shown)
    assert SEEN in shown, "layers, variables and the producer are seen for what they are"
    assert r"[bold]m[/]\x1b[2J :bomb:\u202e.onnx" in shown


@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".h5", ".json", ".npz", ""])
def test_a_command_that_fails_prints_no_name_of_a_file(suffix, tmp_path, capsys):
    path = tmp_path / f"[bold]x[/]\x1b]0;evil\x07 :bomb:\x9b{suffix}"
    path.parent.mkdir()
    path.write_bytes(b"no model\x1b[2J")
    shown, code = command(capsys, "inspect", path)
    assert code == 2 and is_harmless(shown)
    assert rf"[bold]x[/]\x1b]0;evil\x07 :bomb:\x9b{suffix}" in shown
    shown, code = command(capsys, "inspect", tmp_path / "[/]\x1b.onnx")
    assert code == 2 and is_harmless(shown) and r"[/]\x1b.onnx" in shown
    shown, code = command(capsys, "convert", path, tmp_path / "out.txt")
    assert code == 2 and is_harmless(shown)


def test_a_layer_of_such_a_name_is_chosen_by_it_and_named_harmlessly(file):
    target = jm.load_target(file)
    (layer,) = target.spec.trainable_layers
    assert "\x1b" in layer, "names stay what they are"
    x = np.ones((2, 4), np.float32)
    spec = jm.SignalSpec(gradients=(layer,), outputs=(target.spec.layers[-1],))
    signals = jm.extract(target, jm.Records(x, np.zeros(2, np.int32), np.ones(2, bool)), spec)
    assert len(signals.gradients) == 1
    for wrong in (jm.SignalSpec(gradients=("no",)), jm.SignalSpec(outputs=(99,))):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            wrong.resolved(target)
        assert is_harmless(str(caught.value)) and r"\x1b[2J" in str(caught.value)


def unknown_operation() -> onnx.ModelProto:
    model = classifier(NAME)
    model.graph.node[1].op_type = NAME
    return model


def unknown_domain() -> onnx.ModelProto:
    model = classifier(NAME)
    model.graph.node[1].domain = NAME
    model.opset_import.append(helper.make_opsetid(NAME, 1))
    return model


def regression() -> onnx.ModelProto:
    model = classifier(NAME)
    kernel = numpy_helper.from_array(np.ones((4, 1), np.float32), f"{NAME}/kernel")
    model.graph.initializer[0].CopyFrom(kernel)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    return model


@pytest.mark.parametrize("make", [unknown_operation, unknown_domain, regression])
def test_why_a_model_is_refused_is_harmless(make, tmp_path):
    onnx.save(make(), str(tmp_path / "m\x1b[2J.onnx"))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        jm.load_target(tmp_path / "m\x1b[2J.onnx")
    text = "".join(traceback.format_exception(caught.value))
    assert is_harmless(text) and r"m\x1b[2J.onnx" in text


@pytest.mark.parametrize("where", ["name", "class_name", "activation"])
def test_why_a_keras_model_is_refused_is_harmless(where, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="d")])
    config = json.loads(model.to_json())
    layer = config["config"]["layers"][1]
    layer["class_name"] = "Missing"
    if where == "class_name":
        layer["class_name"] = layer["registered_name"] = NASTY
    else:
        layer["config"][where] = NASTY
    (tmp_path / "m.json").write_text(json.dumps(config))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        jm.load_target(tmp_path / "m.json", weights=tmp_path / "m.weights.h5")
    assert is_harmless("".join(traceback.format_exception(caught.value)))


def test_reports_name_layers_harmlessly():
    budget = SimpleNamespace(
        queries=1,
        parameters=(NASTY,),
        layers=(),
        reads=(f"gradients of {NASTY}",),
        known_members=0,
        known_nonmembers=0,
        models_trained=0,
    )
    row = SimpleNamespace(name=NASTY, budget=budget)
    text = findings.budget_text(row)
    assert is_harmless(text) and r"gradients of a\x1b[2Jb" in text
    assert is_harmless(clean(NASTY)) and is_harmless(shortened(NASTY, 30))


def test_a_study_says_what_is_damaged_harmlessly(capsys):
    with results.said() as damaged:
        warnings.warn(NASTY, StoreWarning, stacklevel=1)
    said = capsys.readouterr().err
    assert is_harmless(said) and SEEN in said and "[bold]k[/]l[/red]:bomb:" in said
    assert len(damaged) == 1
    path = Path("no/[/]\x1b:bomb:.keras")
    base = experiment.Config(study="s", seed=0, target=experiment.TargetFile(path=path))
    with pytest.raises(SystemExit):
        experiment.main(base, {}, ["status", "--store", "nowhere"])
    said = capsys.readouterr().err
    assert is_harmless(said) and r"[/]\x1b:bomb:.keras" in said


def test_variables_of_a_layer_are_listed_harmlessly():
    params = {f"{NASTY}/kernel": jnp.ones((4, 3))}
    target = jm.from_function(lambda p, s, x: x @ p[f"{NASTY}/kernel"], params, input_shape=(4,))
    with pytest.raises(ValueError, match=r"name its variables: a\\x1b\[2J") as caught:
        jm.directions.inner_products(target, np.ones((1, 4)), np.zeros(1, int), {NASTY: 1.0})
    assert is_harmless(str(caught.value))
