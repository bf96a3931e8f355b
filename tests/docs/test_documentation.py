"""What the README and docs/ show: code that runs, its output, commands and files that exist.

The Python blocks of a page run in order and share a namespace, as in one session of a reader. A ```text
block right below one is what it prints, numbers to within 1e-6.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import nbqp
import tf_layer

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]\d+)?")
TOX = (ROOT / "tox.ini").read_text()


def name(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run_and_print_what_is_shown(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for code, shown in BLOCK.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), namespace)
        if shown:
            assert words(printed.getvalue()) == words(shown), printed.getvalue()
            assert numbers(printed.getvalue()) == pytest.approx(numbers(shown), abs=1e-6)


def words(text: str) -> list[str]:
    """What stands between numbers, without spaces, which depend on their signs."""
    return ["".join(part.split()) for part in NUMBER.split(text)]


def numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_that_are_named_exist(page: pathlib.Path) -> None:
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", page.read_text()):
        assert f"def {test}(" in tests, test


def test_the_reference_has_every_public_name() -> None:
    for package in (nbqp, tf_layer):
        page = (ROOT / "docs" / "api" / f"{package.__name__}.md").read_text()
        listed = re.findall(rf"^::: {package.__name__}(?:\.\w+)?\.(\w+)$", page, re.MULTILINE)
        apart = ["register"] if package is nbqp else []  # of nbqp.qpsolvers, which few need
        assert sorted(listed) == sorted([*package.__all__, *apart])


def test_the_site_has_every_page() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tox_environments_exist(page: pathlib.Path) -> None:
    for environment in re.findall(r"tox -e ([a-z-]+)", page.read_text()):
        assert f"[testenv:{environment}]" in TOX


def commands() -> list[str]:
    """Every `python -m` command of the pages and of tox.ini, without its arguments."""
    text = "\n".join(page.read_text() for page in PAGES) + TOX
    return sorted(set(re.findall(r"python -m (?:examples|benchmarks|tests)\.[a-z_.]+", text)))


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
