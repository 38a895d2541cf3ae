"""Which Python `make test-newest` takes, among scripts that pretend to be Pythons."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "newest_python"
NOW = sys.version_info.minor


@pytest.fixture
def chosen(tmp_path):
    """The script's choice where this Python and the next two are claimed, as a path from there."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    claimed = [f"Programming Language :: Python :: 3.{NOW + i}" for i in (0, 1, 2)]
    project = f"[project]\nclassifiers = {['Programming Language :: Python :: 3', *claimed]}\n"
    (tmp_path / "pyproject.toml").write_text(project.replace("'", '"'))
    (tmp_path / "bin").mkdir()

    def run() -> str:
        command = [sys.executable, tmp_path / ".ci" / "newest_python"]
        env = {"PATH": str(tmp_path / "bin")}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip().removeprefix(f"{tmp_path}/")

    return run


def pretend(path: Path, says: str, status: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says}\nexit {status}\n")
    path.chmod(0o755)


def test_the_newest_that_is_claimed_released_and_runs(chosen, tmp_path):
    assert chosen() == ""
    for i, says in ((0, "final"), (1, "final"), (2, "candidate"), (3, "final")):
        pretend(tmp_path / f"bin/python3.{NOW + i}", f"3 {NOW + i} {says}")
    assert chosen() == f"bin/python3.{NOW + 1}"
    pretend(tmp_path / f"bin/python3.{NOW + 2}", f"3 {NOW + 2} final")
    assert chosen() == f"bin/python3.{NOW + 2}"


def test_what_pyenv_has_installed_and_not_its_shims(chosen, tmp_path):
    name = f"python3.{NOW + 2}"
    pretend(tmp_path / "bin" / name, "not active", status=127)
    assert chosen() == ""
    pretend(tmp_path / "bin/pyenv", str(tmp_path / "root"))
    pretend(tmp_path / "root/versions" / f"3.{NOW + 2}.0" / "bin" / name, f"3 {NOW + 2} final")
    assert chosen() == f"root/versions/3.{NOW + 2}.0/bin/{name}"
