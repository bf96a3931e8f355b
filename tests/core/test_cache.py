"""The cache of compiled code under upgrades, kills, damage and folders that nothing can be written to."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

import nbqp
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="there is no compiled code to keep"
)

CALLER = """
import sys

import numpy as np

from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry


@entry
def size(x):
    return largest(x)


if "killed" in sys.argv:
    import os, signal
    size._cache._cache_file._save_data = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
print(size(np.array([3.0, -4.0])), len(size.stats.cache_hits))
"""


class Installation:
    """A copy of the solver in a folder, with a module that calls one of its kernels."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        shutil.copytree(
            pathlib.Path(nbqp.__file__).parent,
            folder / "nbqp",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (folder / "caller.py").write_text(CALLER)

    def start(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A process without Python's own cache, which goes by the size and time of a file."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
        paths = {"PYTHONPATH": str(self.folder), "NUMBA_CACHE_DIR": str(self.folder / "cache")}
        return subprocess.run(
            [sys.executable, "-B", "caller.py", *arguments],
            cwd=self.folder,
            env={**inherited, **paths, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def run(self, **environment: str) -> tuple[float, int]:
        """What the kernel returns for (3, -4), and how often its code came from the cache."""
        ran = self.start(**environment)
        assert ran.returncode == 0, ran.stderr
        value, hits = ran.stdout.split()
        return float(value), int(hits)

    def upgrade(self) -> None:
        """Have the callee return other values, in a file of the same size, time and lines."""
        changed = self.folder / "nbqp" / "kernels" / "dense.py"
        before, text = changed.stat(), changed.read_text()
        new = text.replace("value = 0.0\n    for", "value = 7.0\n    for")
        assert new != text
        changed.write_text(new)
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert changed.stat().st_size == before.st_size
        assert changed.stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture
def installation(tmp_path: pathlib.Path) -> Installation:
    return Installation(tmp_path)


def test_an_upgrade_in_place_runs_the_new_code(installation: Installation) -> None:
    """Of a kernel whose caller did not change, in a file of the same size and time."""
    assert installation.run() == (4.0, 0)
    assert installation.run() == (4.0, 1)
    installation.upgrade()
    assert installation.run() == (7.0, 0)
    assert installation.run() == (7.0, 1)


def test_an_upgrade_that_is_killed_while_it_saves_leaves_no_old_code(
    installation: Installation,
) -> None:
    """Numba has written the index of the new code, and the file that it names is that of the old one."""
    assert installation.run() == (4.0, 0)
    installation.upgrade()
    assert installation.start("killed").returncode == -signal.SIGKILL
    assert installation.run() == (7.0, 0)
    assert installation.run() == (7.0, 1)


def test_a_changed_caller_runs_the_new_code(installation: Installation) -> None:
    """Even where its bytecode, by which Numba knows it, is the same: a constant has changed."""
    caller = installation.folder / "caller.py"
    for factor in ("2.0", "3.0"):
        caller.write_text(CALLER.replace("largest(x)\n", f"{factor} * largest(x)\n"))
        assert installation.run() == (4.0 * float(factor), 0)


def test_code_with_and_without_checked_bounds_is_not_confused(installation: Installation) -> None:
    beyond = CALLER.replace("largest(x)\n", "x[2]\n").replace("-4.0])", "-4.0, 5.0])[:2]")
    (installation.folder / "caller.py").write_text(beyond)
    assert installation.run() == (5.0, 0)
    checked = installation.start(NUMBA_BOUNDSCHECK="1")
    assert checked.returncode != 0
    assert "IndexError" in checked.stderr


@pytest.mark.parametrize("home", ["a file", "read-only"])
def test_where_no_folder_can_be_written_every_process_compiles(
    installation: Installation, home: str
) -> None:
    """Files stand where folders would have to be, which stops the superuser, too."""
    kernels = installation.folder / "nbqp" / "kernels"
    blocked = installation.folder / "blocked"
    blocked.write_text("")
    for folder in (kernels, installation.folder):
        (folder / "__pycache__").write_text("")
    if home == "read-only":
        blocked.unlink()
        blocked.mkdir()
        (blocked / ".cache").write_text("")
        blocked.chmod(0o500)
    for _ in range(2):
        ran = installation.start(
            NUMBA_CACHE_DIR=str(blocked / ".cache" / "numba"),
            HOME=str(blocked),
            XDG_CACHE_HOME=str(blocked / ".cache"),
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == ["4.0", "0"]
        assert ran.stderr == ""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where entries that are made now keep their code."""
    # Numba reads its environment again when it compiles and finds it changed.
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def size(x: Any) -> Any:
    return largest(x)


VECTOR = np.array([3.0, -4.0])
INTEGERS = np.array([1, -2])


def call(values: np.ndarray) -> tuple[float, int]:
    """The largest magnitude, by an entry that knows nothing of others but their files, and its loads."""
    made = entry(size)
    return float(made(values)), sum(made.stats.cache_hits.values())


def files(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    return sorted(folder.rglob(f"*{ending}"))


def flip(place: float) -> Callable[[bytes], bytes]:
    """One bit of one byte, at this share of a file."""

    def flipped(content: bytes) -> bytes:
        k = int(place * (len(content) - 1))
        return content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :]

    return flipped


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "zeros at the end": lambda content: content[: len(content) // 2] + bytes(len(content) // 2),
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
    "text": lambda _: b"<html>no such file</html>\n",
    "another pickle": lambda _: b"\x80\x04]\x94.",
    **{f"a bit at {place:.0%}": flip(place) for place in np.linspace(0.0, 1.0, 11)},
}


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_compiled_anew(folder: pathlib.Path, ending: str, damage: str) -> None:
    assert call(VECTOR) == (4.0, 0)
    assert call(VECTOR) == (4.0, 1)
    (file,) = files(folder, ending)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    value, hits = call(VECTOR)
    assert value == 4.0
    # A bit of the index may be one that nobody reads.
    assert hits == 0 or ending == "nbi"
    assert call(VECTOR) == (4.0, 1)


def test_a_file_that_cannot_be_read_is_compiled_anew(folder: pathlib.Path) -> None:
    call(VECTOR)
    (code,) = files(folder, "nbc")
    code.unlink()
    assert call(VECTOR) == (4.0, 0)
    code.unlink()
    code.mkdir()
    with pytest.warns(RuntimeWarning, match="compiled code could not be saved in"):
        assert call(VECTOR) == (4.0, 0)


def test_code_of_another_signature_does_not_run(folder: pathlib.Path) -> None:
    """Two processes that save at once may leave an index that names the code of the other."""
    assert call(VECTOR) == (4.0, 0)
    assert call(INTEGERS) == (2.0, 0)
    one, other = files(folder, "nbc")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert call(VECTOR) == (4.0, 0)
    assert call(INTEGERS) == (2.0, 0)
    assert call(VECTOR) == (4.0, 1)
    assert call(INTEGERS) == (2.0, 1)


def test_a_full_disk_is_a_warning(installation: Installation) -> None:
    """No file may grow beyond a kilobyte."""
    limited = CALLER.replace(
        "import sys\n",
        "import resource\nimport sys\n\nresource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n",
    )
    (installation.folder / "caller.py").write_text(limited)
    for _ in range(2):
        ran = installation.start()
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == ["4.0", "0"]
        assert ran.stderr.count("RuntimeWarning: nbqp: compiled code could not be saved in") == 1
        assert not files(installation.folder, ".tmp*")
