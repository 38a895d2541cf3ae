"""The documentation's code runs, its names exist, and its links lead somewhere."""

import doctest
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from conftest import REPOSITORY

import jaxmeter as jm
from jaxmeter import cli

READ_IN_ONE_GO = (  # pages whose code goes on from one to the next
    ("README.md", "docs/python.md", "docs/sweeps.md"),
    ("docs/sharp_edges.md",),
    ("docs/contributing.md",),
)
SHOWN = {
    "docs/calibrated_whitebox.md",  # code that trains sixteen models
    "docs/contributing_readers.md",  # run by test_readers
    "docs/records.md",  # likewise
}
DOCUMENTS = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"))
)
DOCTESTS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


# --- The code in the pages ----------------------------------------------------------------------


def blocks(text: str) -> Iterator[tuple[str, str, int]]:
    """Kind, code and first line of every fenced block of Python, plain or with a prompt."""
    fence = re.compile(r"^```(python|pycon)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for found in fence.finditer(text):
        yield found[1], found[2], text.count("\n", 0, found.start()) + 1


def run_blocks(text: str, name: str, globs: dict) -> None:
    """Runs a page's blocks one after another in one namespace."""
    for kind, code, line in blocks(text):
        if kind == "python":
            exec(compile("\n" * line + code, name, "exec"), globs)
            continue
        test = doctest.DocTestParser().get_doctest(code, globs, name, name, line)
        complaints: list[str] = []
        runner = doctest.DocTestRunner(verbose=False, optionflags=DOCTESTS)
        runner.run(test, out=complaints.append, clear_globs=False)
        assert not runner.failures, "".join(complaints)
        globs.update(test.globs)


def a_namespace() -> dict:
    """A script's."""
    return {"__name__": "__main__"}


@pytest.fixture
def a_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name, of a small model that has memorised."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 6)).astype(np.float32)
    y = random.integers(0, 3, 300)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(x[:150], y[:150], epochs=60, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "members.npz", x=x[:150], y=y[:150])
    np.savez(tmp_path / "nonmembers.npz", x=x[150:], y=y[150:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rank_promotion() -> Iterator[None]:
    """As a user has it: Keras' training and code of one's own may rely on it."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("rank_promotion")
@pytest.mark.parametrize("pages", READ_IN_ONE_GO, ids=lambda pages: pages[0])
def test_code_in_the_pages_runs(pages: tuple[str, ...], a_users_files: Path, capsys):
    globs = a_namespace()
    for page in pages:
        text = (REPOSITORY / page).read_text()
        assert list(blocks(text)), "the fences were not recognised"
        run_blocks(text, page, globs)
    if "README.md" in pages:
        assert "white box" in capsys.readouterr().out
        assert (a_users_files / "report" / "report.html").exists()


def test_all_code_in_the_pages_is_run():
    run = {page for pages in READ_IN_ONE_GO for page in pages}
    with_code = {name for name in DOCUMENTS if list(blocks((REPOSITORY / name).read_text()))}
    assert with_code - SHOWN == run


@pytest.mark.parametrize(
    "code",
    ["```python\nassert 1 == 2\n```\n", "```pycon\n>>> 1 + 1\n3\n```\n"],
    ids=["statement", "doctest"],
)
def test_code_that_is_wrong_is_noticed(code: str):
    with pytest.raises(AssertionError):
        run_blocks(code, "page", a_namespace())


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", jm.__all__)
def test_public_names_are_documented(name: str):
    thing = getattr(jm, name)
    if not isinstance(thing, type | types.FunctionType | types.ModuleType):
        assert isinstance(thing, tuple), f"{name} is a constant; its docstring is its type's"
        return
    text = thing.__doc__ or ""
    assert re.match(r'[A-Z"`].*[.:?]', text.split("\n\n")[0], re.DOTALL), f"{name}: {text!r}"
    generated = f"{name}("  # what NamedTuple and dataclass write if nobody else does
    assert not text.startswith(generated), f"{name} has no docstring of its own"
    if isinstance(thing, type):
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and inspect.isfunction(value):
                assert value.__doc__, f"{name}.{attribute} has no docstring"


def test_command_line_flags_in_the_pages_exist(capsys):
    with pytest.raises(SystemExit):
        cli.main(["audit", "--help"])
    known = flags(capsys.readouterr().out)
    assert {"--target", "--members", "--nonmembers", "--out"} <= known
    pages = [(REPOSITORY / name).read_text() for name in ("README.md", "docs/command_line.md")]
    named = flags_of_audit("\n".join(pages))
    assert {"--target", "--members", "--gradients"} <= named
    assert named <= known, f"the pages name {named - known}, which do not exist"
    assert flags_of_audit("`--no-such-flag`") - known == {"--no-such-flag"}


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def flags_of_audit(text: str) -> set[str]:
    """Flags in commands of `jaxmeter audit`, and those that stand alone as `--flag`."""
    commands = re.findall(r"jaxmeter audit((?:[^\n`]|\\\n)*)", text)
    return flags(" ".join([*commands, *re.findall(r"`(--[a-z-]+)[^`]*`", text)]))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str):
    path = REPOSITORY / document
    text = path.read_text()
    links = [*re.findall(r"\]\(([^)\s]+)", text), *re.findall(r'src="([^"]+)"', text)]
    broken = [link for link in links if "://" not in link and not leads_somewhere(path, link)]
    assert not broken


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether there is such a file, and such a heading in it."""
    name, _, anchor = link.partition("#")
    there = page.parent / name if name else page
    return there.exists() and (not anchor or anchor in anchors(there.read_text()))


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# --- Architecture -------------------------------------------------------------------------------


PACKAGE = REPOSITORY / "jaxmeter"


# --- Its sentences ------------------------------------------------------------------------------

MOST_WORDS = 40


def long_sentences(text: str) -> Iterator[str]:
    """Sentences, or their parts between semicolons and colons, of too many words.

    Not in code, tables and headings; an item of a list begins anew.
    """
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "\n", text, flags=re.M | re.S)
    text = re.sub(r"^\s*(\||#).*$", "", text, flags=re.M)
    for paragraph in re.split(r"\n\s*\n|^\s*(?:[-*+]|\d+\.)\s", text, flags=re.M):
        for sentence in re.split(r"[.!?;:](?=[\s\"')\]*_`]|$)", paragraph):
            if len(sentence.split()) > MOST_WORDS:
                yield " ".join(sentence.split())


@pytest.mark.parametrize(
    "document", [name for name in DOCUMENTS if name == "README.md" or name.startswith("docs/")]
)
def test_sentences_are_short(document: str):
    assert not [*long_sentences((REPOSITORY / document).read_text("utf-8"))]


def test_a_long_sentence_is_noticed():
    words = " ".join(["word"] * 39)
    assert [*long_sentences(f"A {words} and more.\n\n- A {words}.\n- A {words}.")] == [
        f"A {words} and more"
    ]
    assert not [*long_sentences(f"A {words}; and {words}.\n```\n{words} {words}\n```\n")]


def test_no_module_is_a_drawer_for_odds_and_ends():
    parts = {part for path in PACKAGE.rglob("*.py") for part in path.with_suffix("").parts}
    assert not parts & {"utils", "util", "common", "base", "core", "helpers", "misc"}
    assert "signals" in parts
