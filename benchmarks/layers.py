"""Differentiable QP layers: forward and backward times, with their accuracy, on one thread.

    python -m benchmarks.layers --json results.json --markdown results.md

Every peer solves the same batches in the same process, in turn over the repeats; times are medians.
What a peer returned is judged by NumPy from the data: residuals, the distance to an exact solution,
and the gradient's error against the KKT system of the exact active set.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nbqp
from benchmarks.peers import OURS, PEERS, Floats, Peer, Point, Problem
from benchmarks.report import (
    machine_facts,
    markdown_table,
    median,
    now,
    revision,
    show,
    use_one_core,
    versions,
    write_json,
)

SEED = 1
WARM_UPS = 2
REFERENCE_RESIDUAL = 1e-9
ACTIVE_SET_STEPS = 10
SHIFTED = 1e-7
RCOND = 1e-11
# A peer that has taken so many seconds for one batch is not measured once more.
LONG = 60.0
PACKAGES = ("numba", "numpy", "scipy", "tensorflow", "keras", "torch", "proxsuite", "qpth")


def sudoku(batch: int, curvature: float) -> Problem:
    """4x4 Sudoku with learned rules: x(p) = argmin curvature/2 |x|^2 - p'x, Ax = A z0, x >= 0.

    A is 40 x 64, uniform on (0, 1); p is one-hot for 4 to 8 of the 16 cells, 0 elsewhere; z0 > 0.
    Source: Bambade, Schramm, Taylor, Carpentier 2024, after Amos & Kolter 2017.
    """
    random = np.random.default_rng(SEED)
    n, n_eq = 64, 40
    A = random.uniform(size=(n_eq, n))
    puzzles = np.zeros((batch, 16, 4))
    for puzzle in puzzles:
        cells = random.permutation(16)[: random.integers(4, 9)]
        puzzle[cells, random.integers(4, size=len(cells))] = 1.0
    return Problem(
        H=curvature * np.eye(n) if curvature else None,
        g=-puzzles.reshape(batch, n),
        A=A,
        b=A @ random.uniform(0.1, 1.0, size=n),
        C=np.zeros((0, n)),
        l=np.zeros(0),
        u=np.zeros(0),
        lb=np.zeros(n),
        ub=np.full(n, np.inf),
        target=random.uniform(size=(batch, n)),
    )


def learned_rules(batch: int) -> Problem:
    """Sudoku with A alone to learn, b = 1, H = 0: the closest feasible LP (the paper's setting ii)."""
    problem = sudoku(batch, 0.0)
    return dataclasses.replace(problem, b=np.ones(len(problem.b)), closest=True)


def random_rows(batch: int, feasible: bool) -> Problem:
    """Dense rows, n = 100, n_eq = 25, n_in = 100; infeasible by three equations and three rows."""
    random = np.random.default_rng(SEED)
    n, n_eq, n_in = 100, 25, 100
    L, A, C = (random.standard_normal((rows, n)) for rows in (n, n_eq, n_in))
    x0 = random.standard_normal(n)
    b, low, high = A @ x0, C @ x0 - random.random(n_in), C @ x0 + random.random(n_in)
    if not feasible:
        A[-3:] = random.standard_normal((3, n_eq - 3)) @ A[:-3] / np.sqrt(n_eq)
        b[-3:] = A[-3:] @ x0 + random.uniform(0.5, 1.0, 3)
        C[:3] = C[3:6]
        low[:3], high[:3] = high[3:6] + 0.5, high[3:6] + 2.0
    return Problem(
        H=L.T @ L / n + 0.1 * np.eye(n),
        g=random.standard_normal((batch, n)),
        A=A,
        b=b,
        C=C,
        l=low,
        u=high,
        lb=np.full(n, -np.inf),
        ub=np.full(n, np.inf),
        target=random.standard_normal((batch, n)),
        closest=True,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """Programs by name, each built for a batch size, and the accuracies asked for."""

    programs: dict[str, Callable[[int], Problem]]
    batch: int = 150
    eps_abs: tuple[float, ...] = (1e-5, 1e-9)


CASES = {
    "sudoku": Case(
        {
            "QP": functools.partial(sudoku, curvature=0.1),
            "LP": functools.partial(sudoku, curvature=0.0),
        }
    ),
    "closest": Case(
        {
            "feasible": functools.partial(random_rows, feasible=True),
            "infeasible": functools.partial(random_rows, feasible=False),
        },
        batch=128,
        eps_abs=(1e-6,),
    ),
    "learn-a": Case({"LP": learned_rules}, eps_abs=(1e-6,)),
}


def shifts(problem: Problem, x: Floats) -> tuple[Floats, Floats]:
    """How far the rows of A and of G are from their sides: (batch, n_eq), (batch, rows)."""
    G, lower, upper = problem.rows
    Gx = x @ G.T
    return x @ problem.A.T - problem.b, Gx - np.clip(Gx, lower, upper)


def residuals(problem: Problem, point: Point) -> dict[str, float]:
    """Worst primal and dual residuals and duality gap of the batch, from the data alone.

    primal  |Ax - b|, lower - Gx, Gx - upper; of a closest feasible QP |A's_e + G's|
    dual    |Hx + g + A'y + G'z|, and |z| on an infinite side
    gap     |x'(Hx + g) + (b + s_e)'y + (upper + s)'z_+ + (lower + s)'z_-|
    """
    (x, y, z), (G, lower, upper) = point, problem.rows
    s_e, s = shifts(problem, x)
    primal = s_e @ problem.A + s @ G if problem.closest else np.hstack([s_e, s])
    if not problem.closest:
        s_e, s = 0.0 * s_e, 0.0 * s
    Hx = x @ problem.hessian
    side = np.where(z > 0, upper, lower)
    bounded = np.isfinite(side)
    stationarity = np.abs(Hx + problem.g + y @ problem.A + z @ G)
    gap = np.sum(x * (Hx + problem.g), axis=1) + np.sum(y * (problem.b + s_e), axis=1)
    gap += np.sum(np.where(bounded, z * (np.where(bounded, side, 0.0) + s), 0.0), axis=1)
    return {
        "primal_residual": float(np.max(np.abs(primal), initial=0.0)),
        "dual_residual": float(max(np.max(stationarity), np.max(np.abs(z) * ~bounded, initial=0))),
        "duality_gap": float(np.max(np.abs(gap))),
    }


@dataclasses.dataclass(frozen=True)
class Reference:
    """An exact solution, the gradients there, and its strict complementarity.

    margin: the least over the rows of max(distance to the nearer side, |z|). The gradient is
    unique where it is positive.
    """

    point: Point
    gradients: dict[str, Floats]
    margin: float


def dense_reference(problem: Problem) -> Reference:
    """Solve each QP and differentiate it by dense KKT systems of the active set, in NumPy.

    The first active set is guessed from nbqp's solution, and corrected by (x, z) until it stays:

        [H  B'] [ x]   [-g]            B: A and the active rows of G, d: b and their sides;
        [B  0 ] [yz] = [ d]            active: distance to the side < multiplier

    Of V, A and the rows whose side is shifted, d is the projection on the range of B_V. The guess
    decides nothing but which multipliers of an infeasible QP are meant, since the residuals of the
    result are checked. Then, with K (v, w) = (dL/dx, 0)
    and b4 = B_V^+ w_V, summed over the batch for A and b (s: shifts),

        dL/dg = -v,    dL/db = A b4,    dL/dA = -(y v' + A b4 x' + s_e b4').

    Raises
    ------
    RuntimeError
        No active set satisfies the KKT conditions to 1e-9.
    """
    G, lower, upper = problem.rows
    H, A, b = problem.hessian, problem.A, problem.b
    (batch, n), n_eq = problem.g.shape, len(b)
    data = (problem.H, problem.g, A, b, G, lower, upper)
    settings = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=problem.closest)
    guess = nbqp.solve_batch(*data, settings=settings)
    x, y, z = guess.x.copy(), guess.y.copy(), guess.z.copy()
    gradients = {"g": np.zeros_like(problem.g), "A": np.zeros_like(A), "b": np.zeros_like(b)}
    for k in range(batch):
        previous = None
        for _ in range(ACTIVE_SET_STEPS):
            shift = shifts(problem, x[k : k + 1])[1][0]
            at_lower = G @ x[k] - lower < np.maximum(-z[k], -SHIFTED)
            at_upper = upper - G @ x[k] < np.maximum(z[k], -SHIFTED)
            active = at_lower | at_upper
            if previous is not None and np.array_equal(active, previous):
                break
            previous = active
            B = np.vstack([A, G[active]])
            K = np.block([[H, B.T], [B, np.zeros((len(B), len(B)))]])
            d = np.concatenate([b, np.where(at_lower, lower, upper)[active]])
            V = np.concatenate([np.ones(n_eq, dtype=bool), np.abs(shift[active]) > SHIFTED])
            d[V] = B[V] @ np.linalg.lstsq(B[V], d[V], rcond=RCOND)[0]
            found = np.linalg.lstsq(K, np.concatenate([-problem.g[k], d]), rcond=RCOND)[0]
            x[k], y[k], z_active = np.split(found, [n, n + n_eq])
            z[k] = 0.0
            z[k, active] = z_active
        if V[n_eq:].any() or np.abs(A @ x[k] - b).max() > SHIFTED:
            # Multipliers are unique up to multiples of s: those of least norm, which count here.
            y[k], z[k] = guess.y[k], guess.z[k]
        dL_dx = 2 * (x[k] - problem.target[k])
        v, w = np.split(
            np.linalg.lstsq(K, np.concatenate([dL_dx, np.zeros(len(B))]), rcond=RCOND)[0], [n]
        )
        b4 = np.linalg.lstsq(B[V], w[V], rcond=RCOND)[0]
        gradients["g"][k] = -v
        gradients["A"] -= np.outer(y[k], v) + np.outer(A @ b4, x[k]) + np.outer(A @ x[k] - b, b4)
        gradients["b"] += A @ b4
    point = Point(x, y, z)
    if not max(residuals(problem, point).values()) < REFERENCE_RESIDUAL:
        raise RuntimeError(f"no exact solution: its residuals are {residuals(problem, point)}")
    moved = x @ G.T - shifts(problem, x)[1]
    distance = np.minimum(moved - lower, upper - moved)
    return Reference(point, gradients, float(np.min(np.maximum(distance, np.abs(z)), initial=1.0)))


def gradient_errors(found: dict[str, Floats], exact: dict[str, Floats]) -> dict[str, float]:
    """|found - exact| / |exact| by datum, in the Euclidean norm.

    A vanishing gradient (that of an LP by g) is compared with the largest one instead.
    """
    norms = {name: float(np.linalg.norm(part)) for name, part in exact.items()}
    largest = max(norms.values())
    return {
        name: float(np.linalg.norm(found[name] - part))
        / (norms[name] if norms[name] > 1e-9 * largest else largest)
        for name, part in exact.items()
    }


@dataclasses.dataclass
class Measurement:
    """A peer on a batch: seconds of each repeat, the worst errors over them, or a failure."""

    peer: str
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    failure: str = ""

    def time_step(self, name: str, step: Callable[[], None]) -> None:
        """Time one step by the wall and by the process (all its threads)."""
        process, wall = time.process_time(), time.perf_counter()
        step()
        self.samples.setdefault(f"{name}_wall", []).append(time.perf_counter() - wall)
        self.samples.setdefault(f"{name}_process", []).append(time.process_time() - process)

    def judge(self, problem: Problem, reference: Reference, peer: Peer) -> None:
        """Keep the worst of the errors so far, NaN being the worst of all."""
        point = peer.point()
        gradients = gradient_errors(peer.gradients(), reference.gradients)
        errors = {
            **residuals(problem, point),
            "x_error": float(np.max(np.abs(point.x - reference.point.x))),
            **{f"dL_d{name}_error": error for name, error in gradients.items()},
        }
        for name, error in errors.items():
            self.errors[name] = float(np.maximum(self.errors.get(name, 0.0), error))

    def time(self, name: str) -> float:
        """Median seconds of a step, NaN after a failure."""
        return math.nan if self.failure else median(self.samples[name])

    def worst(self, *names: str) -> float:
        """The largest of the named errors, NaN after a failure."""
        return math.nan if self.failure else float(np.max([self.errors[name] for name in names]))


def measure(problem: Problem, reference: Reference, eps: float, repeats: int) -> list[Measurement]:
    """Warm up every peer, then time them in turn, starting with another one each time."""
    measurements = {name: Measurement(name) for name in PEERS}
    built: dict[str, Peer] = {}
    spent: dict[str, float] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        """A peer that fails is out, with its reason; the others go on."""
        try:
            action()
        except ImportError as error:
            measurements[name].failure = f"not installed: {error}"
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            measurements[name].failure = f"failed: {type(error).__name__}: {reason}"

    def warm_up(name: str) -> None:
        peer = PEERS[name].build(problem, eps)
        begin = time.perf_counter()
        for _ in range(WARM_UPS):
            peer.forward()
            peer.backward()
            spent[name] = time.perf_counter() - begin
            if spent[name] > LONG / 10.0:
                break
        built[name] = peer

    def repeat(name: str) -> None:
        measurement, peer = measurements[name], built[name]
        if measurement.samples and spent[name] > LONG:
            return
        gc.collect()
        begin = time.perf_counter()
        measurement.time_step("forward", peer.forward)
        measurement.time_step("backward", peer.backward)
        spent[name] += time.perf_counter() - begin
        measurement.judge(problem, reference, peer)

    for name in PEERS:
        attempt(name, functools.partial(warm_up, name))
    names = list(built)
    for first in range(repeats):
        for k in range(len(names)):
            name = names[(first + k) % len(names)]
            if not measurements[name].failure:
                attempt(name, functools.partial(repeat, name))
    return list(measurements.values())


HEADER = (
    *("case", "eps_abs", "peer", "forward", "process", "ratio", "backward", "process", "ratio"),
    *("primal", "KKT", "x error", "gradient error", "remark"),
)
LEGEND = (
    "Medians in microseconds per QP, wall and process time; ratio: wall time over that of "
    f"{OURS}. Worst over the batch and the repeats: primal residual; KKT: the largest of primal "
    "residual, dual residual and duality gap; x error: distance to the exact solution in the "
    "maximum norm; gradient error: relative, the worst of dL/dg, dL/dA and dL/db. Of a closest "
    f"feasible QP, primal is |A's_e + C's_i|. A peer that has taken {LONG:.0f} s is not repeated."
)


def table_rows(
    case: str, batch: int, eps: float, measurements: Sequence[Measurement]
) -> list[list[str]]:
    """One row for each peer, in the columns of HEADER."""
    ours = next(measurement for measurement in measurements if measurement.peer == OURS)
    rows = []
    for found in measurements:
        row = [case, f"{eps:g}", found.peer]
        for step in ("forward", "backward"):
            wall, process = found.time(f"{step}_wall"), found.time(f"{step}_process")
            ratio = wall / ours.time(f"{step}_wall")
            row += [show(1e6 * wall / batch, ".0f"), show(1e6 * process / batch, ".0f")]
            row.append(show(ratio, ".2f"))
        for names in (
            ("primal_residual",),
            ("primal_residual", "dual_residual", "duality_gap"),
            ("x_error",),
            ("dL_dg_error", "dL_dA_error", "dL_db_error"),
        ):
            row.append(show(found.worst(*names), ".0e"))
        rows.append([*row, found.failure.replace("|", "/")])
    return rows


def run(cases: Sequence[str], repeats: int, quick: bool) -> tuple[dict[str, Any], str]:
    """Measure the cases; the record for JSON and the report in Markdown."""
    record: dict[str, Any] = {
        "benchmark": "layers",
        "date": now(),
        "machine": {**machine_facts(), "core": use_one_core()},
        "versions": {"nbqp": f"{nbqp.__version__} ({revision()})", **versions(PACKAGES)},
        "settings": {"threads": 1, "repeats": repeats, "warm_ups": WARM_UPS, "seed": SEED},
        "peers": {name: entry.note for name, entry in PEERS.items()},
        "results": [],
    }
    rows = []
    for name in cases:
        case = CASES[name]
        batch = min(case.batch, 15) if quick else case.batch
        for program, build in case.programs.items():
            problem = build(batch)
            reference = dense_reference(problem)
            for eps in case.eps_abs:
                print(f"{name} {program}, eps_abs {eps:g} ...", file=sys.stderr, flush=True)
                measurements = measure(problem, reference, eps, repeats)
                rows += table_rows(f"{name} {program}", batch, eps, measurements)
                record["results"].append(
                    {
                        "case": name,
                        "program": program,
                        "batch": batch,
                        "eps_abs": eps,
                        "margin": reference.margin,
                        "peers": [dataclasses.asdict(found) for found in measurements],
                    }
                )
    machine = record["machine"]
    facts = ", ".join(f"{key} {value or 'absent'}" for key, value in record["versions"].items())
    notes = "\n".join(f"- {name}: {entry.note}" for name, entry in PEERS.items())
    head = f"{machine['processor']}, one core, {record['date']}, {repeats} repeats; {facts}."
    return record, "\n\n".join([head, markdown_table(HEADER, rows), LEGEND, notes]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=run.__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where every sample goes")
    parser.add_argument("--markdown", type=Path, help="where the table goes, besides the output")
    parser.add_argument("--repeats", type=int, default=21, help="timed repeats (default: 21)")
    parser.add_argument("--quick", action="store_true", help="at most 15 QPs and 3 repeats")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: expected at least 1")
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    record, table = run(options.cases, repeats, options.quick)
    write_json(options.json, record)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
