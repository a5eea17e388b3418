"""ufm and what one would use instead, on the same problems, from the same starts; and the solver against the machine.

The race: seconds and steps until the objective is within 1e-4, 1e-6 and 1e-8 of the optimal value (which the closed
form knows), at class level and at sample level, for ufm, SciPy, jaxopt and PyTorch (`peers.py`); at class level also
for one of 64 problems that ufm solves together, and with free features for SCS and Clarabel (`convex.py`).
Compilation is timed apart. A peer is stopped when it has taken 60
times as long as ufm, within limits.

The machine: time per step against copy bandwidth and matrix-multiply rate (`roofline.py`); cost against N, d and K;
problems per second against the number solved together.

What users wait for (`whole.py`): processes of `ufm solve` from 10 to 8,142 classes, and sweeps against single solves.

    pip install ".[peers,sweep]"
    python -m experiments.benchmark --quick       # under 2 minutes
    python -m experiments.benchmark               # the figures in experiments/MEASURED.md
    python -m experiments.benchmark.accelerator   # on a GPU or TPU

Not a script: a part of `python -m experiments.benchmark`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.benchmark import figures as benchmark_figures
from experiments.benchmark.convex import solve_conic
from experiments.benchmark.peers import SOLVERS, Case, Course, ufm_together
from experiments.benchmark.roofline import roofline, step_seconds
from experiments.benchmark.whole import SIZES, SWEPT, process_table, sweep_table, swept_alone, whole_process
from experiments.common import Outputs
from ufm.model.devices import use_all_cores
from ufm.model.problem import Level
from ufm.profiles import parse_counts
from ufm.text import plain_table, progress_bar

#: Solvers for free features at class level only.
CONIC = {
    "SCS": functools.partial(solve_conic, solver="SCS"),
    "Clarabel": functools.partial(solve_conic, solver="CLARABEL"),
}
GAPS = (1e-4, 1e-6, 1e-8)
LEVELS: tuple[Level, ...] = ("class", "sample")
#: A peer may take this many times as long as ufm.
PATIENCE = 60


def workload(counts: str, dim: int, weight_decay: float, feature_decay: float) -> ufm.Problem:
    """Return a problem with the counts of a profile."""
    return ufm.Problem(parse_counts(counts), dim, weight_decay, feature_decay)


#: Published settings: counts, and decays after conversion of the published code's batch convention.
WORKLOADS = {
    "100..500, d=64": workload("100x2,200x2,300x2,400x2,500x2", 64, 2e-4, 1.7e-6),
    "5x500+5x50, d=64": workload("500x5,50x5", 64, 5e-3, 1e-6),
    "100..500, d=512": workload("100x2,200x2,300x2,400x2,500x2", 512, 2e-4, 1.7e-6),
    "N=30,000, d=512": workload("1000x2,2000x2,3000x2,4000x2,5000x2", 512, 2e-4, 1.7e-7),
}
#: The same with free features, at class level.
FREE = {
    f"free, {name}": workload(counts, dim, 5e-3, 1e-6).replace(features="free")
    for name, counts, dim in (("5x500+5x50", "500x5,50x5", 10), ("10x500+10x50", "500x10,50x10", 20))
}


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is measured.

    Attributes:
        workloads: problems that are raced on at both levels.
        free: problems that are raced on at class level.
        limits: shortest and longest time in seconds that a peer gets.
        rooflines: problems whose step is held against the machine.
        scaling: whether cost against N, d, K and batch size, whole processes and sweeps are measured.
        precisions: of the rooflines.
    """

    workloads: dict[str, ufm.Problem]
    free: dict[str, ufm.Problem]
    limits: tuple[float, float]
    rooflines: dict[str, ufm.Problem]
    scaling: bool
    precisions: tuple[str, ...] = ("float64", "float32")


def _only(*names: str) -> dict[str, ufm.Problem]:
    return {name: WORKLOADS[name] for name in names}


SUITES = {
    "quick": Suite(_only("100..500, d=64"), {}, (1, 4), _only("100..500, d=512"), scaling=False),
    "full": Suite(WORKLOADS, FREE, (3, 60), _only("N=30,000, d=512"), scaling=True),
}

Record = dict[str, Any]
Job = tuple[str, Callable[[], list[Record]]]


def races(suite: Suite) -> list[Job]:
    """Return all solvers on one problem at one level, for every problem and level."""
    raced = [(name, problem, level) for name, problem in suite.workloads.items() for level in LEVELS]
    raced += [(name, problem, LEVELS[0]) for name, problem in suite.free.items()]
    return [
        (f"{race[0]}, {race[2]} level", functools.partial(race_on, *race, suite.limits)) for race in raced
    ]


def race_on(name: str, problem: ufm.Problem, level: Level, limits: tuple[float, float]) -> list[Record]:
    """Run ufm, then every peer with the patience that this leaves."""
    case, limit, records = Case(name, problem, level), limits[1], []
    for solver, run in (SOLVERS | (CONIC if problem.features == "free" else {})).items():
        if run is ufm_together and level == "sample":
            continue  # 64 times the features
        course = Course(case.optimum, GAPS[-1], limit)
        with jax.enable_x64(True):
            run(case, course)
        reached = [course.reached(gap) for gap in GAPS]
        if solver == "ufm" and reached[-1]:
            limit = float(np.clip(PATIENCE * reached[-1][0], *limits))
        thinned = course.records[:: max(1, len(course.records) // 200)]
        records.append(
            {
                "workload": name,
                "level": level,
                "solver": solver,
                "compile_seconds": course.compiling,
                "reached": reached,
                "limit": None if solver.startswith("ufm") else limit,
                "diverged": course.diverged,
                "seconds": course.seconds,
                "steps": course.steps,
                "gap": min(record[2] for record in course.records),
                "course": thinned,
            }
        )
    return records


def race_table(records: list[Record]) -> str:
    """Return one block per problem and level: seconds to each gap, steps and times as long as ufm."""
    blocks = []
    for workload_name, level in dict.fromkeys((r["workload"], r["level"]) for r in records):
        chosen = [r for r in records if (r["workload"], r["level"]) == (workload_name, level)]
        ours = chosen[0]["reached"][-1]
        rows = [_race_row(record, ours) for record in chosen]
        header = [f"{level} level", "to 1e-4", "1e-6", "1e-8", "steps", "of ufm", "compile"]
        blocks.append(f"{workload_name}\n{plain_table(header, rows)}")
    return "\n\n".join(blocks)


def _race_row(record: Record, ours: tuple[float, int] | None) -> list[str]:
    cells = [f"{reached[0]:.3g} s" if reached else "-" for reached in record["reached"]]
    last = record["reached"][-1]
    if record["diverged"]:
        return [record["solver"], *cells, "diverged", "-", f"{record['compile_seconds']:.1f} s"]
    taken = last[0] if last else record["seconds"]
    ratio = f"{'' if last else '> '}{taken / ours[0]:.3g}" if ours else "-"
    steps = str(last[1]) if last else f"gap {record['gap']:.0e}"
    return [record["solver"], *cells, steps, ratio, f"{record['compile_seconds']:.1f} s"]


def roofline_table(records: list[Record]) -> str:
    """Return step time, bound, shares of the machine's rates, and temporary memory in feature matrices."""
    header = ["workload", "", "step", "bound", "x bound", "copy", "multiply", "spare"]
    rows = [
        [
            record["workload"],
            record["precision"],
            f"{1e3 * record['seconds']:.3g} ms",
            f"{1e3 * max(record['traffic_seconds'], record['products_seconds']):.3g} ms",
            f"{record['times_bound']:.2f}",
            f"{record['bandwidth_share']:.0%} of {record['bandwidth'] / 1e9:.3g} GB/s",
            f"{record['rate_share']:.0%} of {record['rate'] / 1e9:.3g} Gflop/s",
            f"{record.get('temporaries', np.nan):.2f}",
        ]
        for record in records
    ]
    return plain_table(header, rows)


def rooflines(suite: Suite) -> list[Job]:
    """Return the step of every problem against the machine, in every precision."""

    def against(name: str, problem: ufm.Problem, precision: str) -> list[Record]:
        return [{"workload": name, "precision": precision} | roofline(problem, precision)]

    return [
        (f"roofline, {name}, {precision}", functools.partial(against, name, problem, precision))
        for name, problem in suite.rooflines.items()
        for precision in suite.precisions
    ]


def scalings(suite: Suite) -> list[Job]:
    """Return cost against the number of samples, dimensions, classes, and problems solved together."""
    if not suite.scaling:
        return []
    sizes = [("N", N, 10, N, 128) for N in (1000, 3000, 10_000, 30_000, 100_000)]
    sizes += [("d", dim, 10, 10_000, dim) for dim in (16, 64, 256, 1024)]
    sizes += [("K", K, K, 10_000, 256) for K in (2, 10, 50, 200)]
    jobs: list[Job] = [(f"{size[0]} = {size[1]}", functools.partial(_scaled, *size)) for size in sizes]
    return jobs + [(f"{m} problems together", functools.partial(_together, m)) for m in (1, 8, 64, 512)]


def _scaled(axis: str, value: int, K: int, N: int, dim: int) -> list[Record]:
    problem = ufm.Problem([N // K] * K, dim, 1e-3, 1e-3 / N)
    seconds = step_seconds(problem, "sample", "float64", 0.5)["seconds"]
    return [{"axis": axis, "value": value, "seconds": seconds}]


def _together(members: int) -> list[Record]:
    """Return seconds per problem of a sweep over seeds, every member certified, compiled before."""
    fixed = {"counts": "500x5,50x5", "dim": 16, "weight_decay": 5e-3, "feature_decay": 1e-6}

    def solve_all() -> float:
        started = time.perf_counter()
        found = ufm.sweep(fixed, {"seed": list(range(members))}, batch_size=members)
        if not bool(found.certified.all()):
            raise RuntimeError("a member of the sweep is not certified")
        return (time.perf_counter() - started) / members

    solve_all()
    return [{"axis": "problems together", "value": members, "seconds": solve_all()}]


def processes(suite: Suite) -> list[Job]:
    """Return whole processes, for every number of classes and level."""
    return [
        (f"ufm solve, K = {K}, {level} level", functools.partial(whole_process, K, level))
        for K, size in SIZES.items()
        for level in size.levels
        if suite.scaling
    ]


def sweeps(suite: Suite) -> list[Job]:
    """Return sweeps against single solves, for every number of classes."""
    return [
        (f"{members} members, K = {K}", functools.partial(swept_alone, K, members))
        for K, members in SWEPT.items()
        if suite.scaling
    ]


def scaling_table(records: list[Record]) -> str:
    """Return cost against size, one line per axis."""
    lines = []
    for axis in dict.fromkeys(record["axis"] for record in records):
        cells = [f"{r['value']:,}: {1e3 * r['seconds']:.3g}" for r in records if r["axis"] == axis]
        lines.append([axis, ", ".join(cells)])
    return plain_table(["against", "ms per step; per problem in the last line"], lines)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def main(
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Measure, print the tables, save JSON and figure; return 1 if ufm missed a gap of 1e-8.

    Args:
        outputs: where all figures (JSON) and the picture go.
        quick: one problem and one roofline only; all else on an idle machine.
    """
    suite = "quick" if quick else "full"
    chosen = SUITES[suite]
    peers = {solver.split()[0].strip(",") for solver in SOLVERS} & {"jaxopt", "torch"}
    peers |= {"cvxpy"} if chosen.free else set()
    if missing := sorted(peer for peer in peers if importlib.util.find_spec(peer) is None):
        raise SystemExit(f'the benchmark needs {", ".join(missing)}: pip install ".[peers,sweep]"')
    results_at = outputs.of("benchmark", quick)
    use_all_cores(30_000, 512)
    parts = {
        "race": races(chosen),
        "roofline": rooflines(chosen),
        "scaling": scalings(chosen),
        "processes": processes(chosen),
        "sweeps": sweeps(chosen),
    }
    results: dict[str, list[Record]] = {part: [] for part in parts}
    with progress_bar(True, "measuring", sum(len(jobs) for jobs in parts.values()), stays=True) as bar:
        for part, jobs in parts.items():
            for words, job in jobs:
                bar.line(words)
                results[part] += job()
                bar.advance()
    results_at.save({"suite": suite, "machine": machine()} | results)
    tables = {
        "race": race_table,
        "roofline": roofline_table,
        "scaling": scaling_table,
        "processes": process_table,
        "sweeps": sweep_table,
    }
    print(*(f"{tables[part](found)}\n" for part, found in results.items() if found), sep="\n")
    results_at.draw(benchmark_figures.figure(results))
    missed = [r for r in results["race"] if r["solver"] == "ufm" and not r["reached"][-1]]
    return int(bool(missed))
