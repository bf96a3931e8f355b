"""What needs more memory than there is: refused with an estimate, before it is taken."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from nbqp.memory import _left_of, available_memory
from tests import processes


def small_machine(monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    """A machine with so many bytes left, which is asked about everything."""
    for place in ("nbqp.memory", "nbqp.analysis"):
        monkeypatch.setattr(f"{place}.available_memory", lambda: left)
        monkeypatch.setattr(f"{place}.UNQUESTIONED", 0)


def dense(n: int) -> dict[str, Any]:
    return {"H": np.eye(n) + 0.5 / n, "g": np.ones(n), "lb": -1.0}


def chain(n: int) -> dict[str, Any]:
    beside = np.full(n - 1, 1.0)
    H = sp.diags_array([beside, np.full(n, 4.0), beside], offsets=[-1, 0, 1], format="csc")
    return {"H": H, "g": np.ones(n), "lb": -1.0}


@pytest.mark.parametrize(
    ("data", "left", "name"),
    [
        (dense(71), 1e4, "g of 71 entries"),
        (dense(72), 1e5, "H"),
        (dense(73), 2e5, "analysis"),
        (chain(74), 4.2e4, "factor of 74 rows"),
    ],
)
def test_a_solve_names_what_is_too_large(
    data: dict[str, Any], left: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        small_machine(patch, left)
        with pytest.raises(
            nbqp.TooLargeError, match=f"^{name}.*: expected at most .* GiB.*estimate"
        ):
            nbqp.solve_qp(**data)
    sol = nbqp.solve_qp(**data)
    assert sol.status is nbqp.Status.SOLVED
    small_machine(monkeypatch, 3e6)
    np.testing.assert_array_equal(nbqp.solve_qp(**data).x, sol.x)


def test_a_batch_and_its_derivatives_name_what_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, batch = 9, 3000
    data = {"H": np.eye(n) + np.zeros((batch, n, n)), "g": np.ones((batch, n))}
    sol = nbqp.solve_batch(**data)
    small_machine(monkeypatch, 1e6)
    with pytest.raises(nbqp.TooLargeError, match=r"^H: "):
        nbqp.solve_batch(**data)
    with pytest.raises(nbqp.TooLargeError, match=r"^results: "):
        nbqp.solve_batch(np.eye(n), data["g"])
    with pytest.raises(nbqp.TooLargeError, match=r"^gradients: "):
        nbqp.vjp(sol, dL_dx=np.ones((batch, n)))
    for wrt in ("g", "H"):
        with pytest.raises(nbqp.TooLargeError, match=r"^Jacobian: "):
            nbqp.jacobian(sol, wrt=wrt)


def test_the_error_is_a_qp_error_and_a_memory_error() -> None:
    assert issubclass(nbqp.TooLargeError, nbqp.QPError)
    assert issubclass(nbqp.TooLargeError, MemoryError)


def test_a_view_of_a_number_is_not_written_out() -> None:
    """Of 8 TB, and a dense H of 3 TB."""
    with pytest.raises(nbqp.TooLargeError, match=r"^g of 1000000000000 entries: "):
        nbqp.solve_qp(g=np.broadcast_to(1.0, 10**12), lb=0.0)
    H = np.broadcast_to(np.eye(600), (10**6, 600, 600))
    with pytest.raises(nbqp.TooLargeError, match=r"^H: "):
        nbqp.solve_batch(H, np.ones(600))


@pytest.mark.large
def test_the_order_that_tells_the_size_of_a_factor_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clique of the elimination bounds what is to come."""
    n = 3000
    R = sp.random_array((n, n), density=8.0 / n, rng=np.random.default_rng(0), format="csc")
    H = sp.csc_array(R + R.T + 32.0 * sp.eye_array(n))
    small_machine(monkeypatch, 4e6)
    with pytest.raises(nbqp.TooLargeError, match="as far as it was ordered"):
        nbqp.solve_qp(H, np.ones(n))


OUT_OF_MEMORY = """
    import resource, sys
    import numpy as np, scipy.sparse as sp, nbqp, nbqp.analysis, nbqp.memory

    rng = np.random.default_rng(0)
    solver = nbqp.Solver(np.eye(20) + 0.01, rng.standard_normal(20), lb=-0.1)
    before = solver.solve()
    n = 9000
    R = sp.random_array((n, n), density=8.0 / n, rng=rng, format="csc")
    H = sp.csc_array(R + R.T + 32.0 * sp.eye_array(n))
    for module in (nbqp.memory, nbqp.analysis):
        module.UNQUESTIONED = 0 if sys.argv[1] == "known" else 2**62
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + 2**27
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        nbqp.solve_qp(H, np.ones(n))
    except MemoryError as error:
        print(type(error).__name__)
    after = solver.solve()
    print(after.status.name, np.array_equal(before.x, after.x))
"""


@pytest.mark.large
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="Linux says what it has")
@pytest.mark.parametrize(
    ("known", "error"), [("known", "TooLargeError"), ("unknown", "MemoryError")]
)
def test_a_memory_error_leaves_what_there_is_intact(known: str, error: str) -> None:
    """Whether it was foreseen, or came in the middle of a kernel."""
    assert processes.run(OUT_OF_MEMORY, known).split() == [error, "SOLVED", "True"]


def test_the_limits_of_control_groups_count(tmp_path: pathlib.Path) -> None:
    """Those above a group too; files that are cached can be dropped."""
    group = pathlib.PurePosixPath("a/b")
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder, most, used in (("a/b", "max", "10"), ("a", "1000", "900"), (".", "5000", "100")):
        (tmp_path / folder / "memory.max").write_text(most + "\n")
        (tmp_path / folder / "memory.current").write_text(used + "\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 700\ninactive_file 200\nactive_file 1\n")
    names = "memory.max", "memory.current", "inactive_file"
    assert list(_left_of(tmp_path, group, *names)) == [300.0, 4900.0]
    assert list(_left_of(tmp_path, pathlib.PurePosixPath("gone"), *names)) == [4900.0]


def test_the_machine_says_how_much_is_left() -> None:
    assert 2**20 < available_memory() < 2**60
