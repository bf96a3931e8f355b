"""Sparse QP solvers on a folder of convex programs, such as the Maros-Mészáros set.

    python -m benchmarks.maros_meszaros --data DIR --out results --eps 1e-6

One program at a time is solved by one solver, in a process that is killed when it takes too long.
Solutions are judged by NumPy from the data. What is finished is kept in `--out`, and not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import nbqp
from benchmarks.adaptors import Answer, solve_program
from benchmarks.isolated import START_LIMIT, OvertimeError, Worker, WorkerError
from benchmarks.maros_report import (
    LEGEND,
    Result,
    doubtful_table,
    draw_profile,
    fit_factorisations,
    fit_lines,
    summarise,
    summary_table,
    times_table,
)
from benchmarks.programs import (
    Program,
    Residuals,
    load_program,
    select_programs,
    small_program,
)
from benchmarks.report import (
    finite,
    headline,
    machine_facts,
    new_record,
    one_core,
    versions,
    write_json,
)
from benchmarks.solvers import SOLVERS, Entry

LIMIT = 20.0
GRACE = 5.0
"""Seconds over the limit after which a solver is killed; it converts its data in them too."""
MEMORY = 8.0
PACKAGES = tuple(dict.fromkeys(name for entry in SOLVERS.values() for name in entry.packages))
UNJUDGED = Residuals(math.nan, math.nan, math.nan, math.nan)


def source_digest() -> str:
    """What the code of nbqp is, committed or not."""
    folder = Path(nbqp.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Task:
    """A program for a solver, and all that its result depends on."""

    path: Path
    solver: str
    eps: float
    limit: float
    key: dict[str, Any]

    @property
    def entry(self) -> Entry:
        """How the solver is called."""
        return SOLVERS[self.solver]


def list_tasks(
    paths: Iterable[Path], solvers: Sequence[str], eps: Sequence[float], limit: float, memory: float
) -> list[Task]:
    """Every solver on every program, program by program so that the machine's moods hit all."""
    installed = {name: versions(SOLVERS[name].packages) for name in solvers}
    processor = machine_facts()["processor"]
    code = source_digest()
    tasks = []
    for path in paths:
        data = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for accuracy in eps:
            for name in solvers:
                key = {
                    "problem": path.stem,
                    "data": data,
                    "solver": name,
                    "eps": accuracy,
                    "settings": SOLVERS[name].settings(accuracy, limit),
                    "limit": limit,
                    "memory": memory,
                    "versions": installed[name],
                    "nbqp": code if name.startswith("nbqp") else None,
                    "processor": processor,
                }
                tasks.append(Task(path, name, accuracy, limit, key))
    return tasks


def judge(task: Task, program: Program, answer: Answer) -> Result:
    """The result of a solve that returned."""
    finite_point = np.isfinite(answer.x).all() and np.isfinite(answer.y).all()
    return Result(
        problem=program.name,
        solver=task.solver,
        eps=task.eps,
        limit=task.limit,
        ended="solved" if answer.solved else "unsolved",
        status=answer.status,
        seconds=answer.seconds,
        residuals=program.residuals(answer.x, answer.y) if finite_point else UNJUDGED,
        memory=answer.memory,
        counts=answer.counts,
        key=task.key,
    )


def run_task(task: Task, program: Program, worker: Worker) -> Result:
    """Solve and judge; a solver that is killed or raises is a result too."""
    arguments = (task.entry.adaptor, program, task.key["settings"])
    try:
        return judge(task, program, worker.call(*arguments, limit=task.limit + GRACE))
    except OvertimeError as error:
        ended, status, seconds = "killed", str(error), task.limit
    except WorkerError as error:
        ended, status, seconds = "failed", str(error), math.nan
    return Result(
        problem=program.name,
        solver=task.solver,
        eps=task.eps,
        limit=task.limit,
        ended=ended,
        status=status,
        seconds=seconds,
        residuals=UNJUDGED,
        memory=0,
        counts={},
        key=task.key,
    )


class Finished:
    """The results in a file of JSON lines, by their keys."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, Result] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text + "\n")
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                # Cut off, with the run that was writing it.
                continue
            numbers = [math.nan if value is None else value for value in record["residuals"]]
            seconds = math.nan if record["seconds"] is None else record["seconds"]
            record |= {"residuals": Residuals(*numbers), "seconds": seconds}
            self._keep(Result(**record))

    def _keep(self, result: Result) -> None:
        self._results[json.dumps(result.key, sort_keys=True)] = result

    def get(self, task: Task) -> Result | None:
        """The result of a task, if it is there."""
        return self._results.get(json.dumps(task.key, sort_keys=True))

    def add(self, result: Result) -> None:
        """Keep a result, in the file at once."""
        self._keep(result)
        with self._path.open("a") as file:
            file.write(json.dumps(finite(dataclasses.asdict(result)), allow_nan=False) + "\n")


def run_tasks(tasks: Sequence[Task], finished: Finished, memory: float) -> Iterator[Task]:
    """Do what is not finished, each solver in its own process; yields each task before it runs."""
    workers: dict[str, Worker] = {}
    program: Program | None = None
    try:
        for task in tasks:
            yield task
            if finished.get(task):
                continue
            if program is None or program.name != task.path.stem:
                program = load_program(task.path)
            if task.solver not in workers:
                # Compilation counts in nbqp's time limit: that of the first call is long.
                settings = task.entry.settings(task.eps, START_LIMIT)
                warm_up = (task.entry.adaptor, small_program(), settings)
                workers[task.solver] = Worker(solve_program, warm_up, int(1e9 * memory))
            finished.add(run_task(task, program, workers[task.solver]))
    finally:
        for worker in workers.values():
            worker.close()


def show_progress(tasks: Sequence[Task], finished: Finished, memory: float) -> None:
    """Run the tasks under a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Drawn between the solves alone: a thread that draws would disturb them.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        bar = progress.add_task("", total=len(tasks))
        for count, task in enumerate(run_tasks(tasks, finished, memory)):
            text = f"{task.path.stem}, {task.solver}, {task.eps:g}"
            progress.update(bar, completed=count, description=text, refresh=True)
        progress.update(bar, completed=len(tasks), description="done", refresh=True)


def write_report(
    out: Path, results: Sequence[Result], facts: dict[str, Any], missing: Sequence[str]
) -> str:
    """results.json, results.md and a profile for each eps_abs; returns the Markdown."""
    accuracies = facts["settings"]["eps"]
    parts = [headline(facts, f"limit {facts['settings']['limit']:g} s")]
    if missing:
        parts.append(f"Not installed: {', '.join(missing)}.")
    summaries = []
    for eps in accuracies:
        own = [result for result in results if result.eps == eps]
        summary = summarise(own, eps)
        summaries += summary
        parts += [f"## eps_abs {eps:g}", summary_table(summary, eps)]
        parts += ["Wrong or said to be infeasible:", doubtful_table(own)]
        try:
            draw_profile(out / f"profile-{eps:g}.png", own, eps)
        except ImportError as error:
            print(f"no profile: {error}", file=sys.stderr)
    for eps in accuracies:
        own = [result for result in results if result.eps == eps]
        parts += [f"## Seconds at eps_abs {eps:g}", "In brackets: not solved to it."]
        parts.append(times_table(own, eps))
    fits = fit_factorisations(results)
    if fits:
        parts += ["## Factorisations", fit_lines(fits)]
    names = dict.fromkeys(result.solver for result in results)
    parts += ["## Legend", LEGEND]
    parts.append("\n".join(f"- {name}: {SOLVERS[name].note}" for name in names))
    text = "\n\n".join(parts) + "\n"
    (out / "results.md").write_text(text)
    record = {
        **facts,
        "solvers": {name: SOLVERS[name].note for name in names},
        "not_installed": list(missing),
        "summaries": summaries,
        "fits": [fit._asdict() for fit in fits],
        "results": [
            {**dataclasses.asdict(result), "residuals": result.residuals._asdict()}
            for result in results
        ],
    }
    write_json(out / "results.json", record)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.maros_meszaros", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder of .mat files")
    parser.add_argument("--out", type=Path, default=Path("maros-meszaros"), help="results go here")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--problems", nargs="+", default=["*"], help="names or patterns: 'CVXQP*'")
    parser.add_argument("--eps", type=float, action="append", help="1e-6; may be repeated")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a solve: 20")
    parser.add_argument("--memory", type=float, default=MEMORY, help="GB for a solver: 8")
    options = parser.parse_args(arguments)
    eps = list(dict.fromkeys(options.eps or [1e-6]))
    if not (min(eps) > 0.0 and options.limit > 0.0 and options.memory > 0.0):
        parser.error("--eps, --limit, --memory: expected positive numbers")
    try:
        paths = select_programs(options.data, options.problems)
    except FileNotFoundError as error:
        parser.error(str(error))
    found = versions(PACKAGES)
    missing = [name for name in options.solvers if found[SOLVERS[name].packages[0]] is None]
    for name in missing:
        print(f"skipped: {name}, {SOLVERS[name].packages[0]} is not installed", file=sys.stderr)
    solvers = [name for name in options.solvers if name not in missing]
    if not solvers:
        parser.error("--solvers: none of them is installed")
    settings = {"eps": eps, "limit": options.limit, "memory": options.memory}
    facts = new_record("maros_meszaros", one_core(), found, settings)
    tasks = list_tasks(paths, solvers, eps, options.limit, options.memory)
    finished = Finished(options.out / "finished.jsonl")
    done = sum(finished.get(task) is not None for task in tasks)
    if done:
        print(f"skipped: {done} of {len(tasks)} are finished already", file=sys.stderr)
    show_progress(tasks, finished, options.memory)
    results = [result for result in map(finished.get, tasks) if result is not None]
    print(write_report(options.out, results, facts, missing))


if __name__ == "__main__":
    main()
