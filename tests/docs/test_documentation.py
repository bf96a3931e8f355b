"""What the README and docs/ show: code that runs, commands and files that exist."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOX = (ROOT / "tox.ini").read_text()


def name(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run(page: pathlib.Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tox_environments_exist(page: pathlib.Path) -> None:
    for environment in re.findall(r"tox -e ([a-z]+)", page.read_text()):
        assert f"[testenv:{environment}]" in TOX


def commands() -> list[str]:
    """Every `python -m` command of the pages and of tox.ini, without its arguments."""
    text = "\n".join(page.read_text() for page in PAGES) + TOX
    return sorted(set(re.findall(r"python -m (?:examples|benchmarks)\.[a-z_.]+", text)))


@pytest.mark.parametrize("command", commands())
def test_commands_have_a_help_page(command: str) -> None:
    arguments = [*shlex.split(command)[1:], "--help"]
    shown = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage" in shown.stdout


def test_the_readme_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "    pip install tox && tox -e sudoku\n" in text
    assert "    pip install tox && tox\n" in text
    sudoku = TOX.partition("[testenv:sudoku]")[2].partition("[testenv:")[0]
    assert "python -m examples.sudoku" in sudoku
