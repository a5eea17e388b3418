"""Random problems against an independent verifier: is every start certified, and is every certificate true?

Cross-entropy, non-negative features, one row per class. Classes from 2 to 200, counts log-uniform from 1 to
10^6, ``lambda_W lambda_H`` over ten decades around the collapse threshold of a random class, the ratio
``lambda_W/lambda_H`` over twelve, dimensions from 1 to 4 K. Every answer goes through `independent.py`, which shares
no code with the solver or its certificate. For d >= K every problem must be certified; for any d no certificate may
be false.

Problems share a fixed set of shapes (K, d), small ones more often, so that each is compiled once (1-2 s, not counted
in the time per problem). Results are appended to a file of JSON lines, one per problem; a second run continues
where the first stopped.

    python -m experiments.stress [--problems 2000] [--jobs 2] [--quick]

Not a script: a part of `python -m experiments.stress`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from experiments.stress import independent
from ufm.text import track

#: How often every shape with K classes occurs in one round of shapes.
CLASSES = {2: 8, 3: 8, 5: 8, 10: 8, 20: 8, 50: 5, 100: 2, 200: 1}
QUICK_CLASSES = {2: 1, 10: 1}
TOL = 1e-8
MAX_STEPS = 20_000
Shape = tuple[int, int]


def dimensions(K: int) -> list[int]:
    """Return the dimensions tried with K classes: below, at, just above and far above K."""
    return sorted({1, math.ceil(K / 2), K, K + 1, K + 2, 2 * K, 4 * K})


def shapes(classes: dict[int, int], problems: int) -> list[Shape]:
    """Return K and d of every problem: the shapes take turns."""
    turns = [(turn, K, dim) for K, often in classes.items() for dim in dimensions(K) for turn in range(often)]
    turn_by_turn = [(K, dim) for _, K, dim in sorted(turns)]
    return [turn_by_turn[number % len(turns)] for number in range(problems)]


def random_problem(number: int, shape: Shape) -> ufm.Problem:
    """Return problem ``number``, the same in every run."""
    K, dim = shape
    rng = np.random.default_rng([2024, number])
    counts = np.floor(10 ** rng.uniform(0, 6, K)).astype(np.int64)
    threshold = rng.choice(counts) * (K - 1) / K / counts.sum() ** 2
    product, ratio = threshold * 10 ** rng.uniform(-7, 3), 10 ** rng.uniform(-6, 6)
    return ufm.Problem(counts, dim, math.sqrt(product * ratio), math.sqrt(product / ratio))


def solve_and_judge(number: int, shape: Shape) -> dict[str, Any]:
    """Solve one problem from a random start and return the record of what came out and what the verifier says."""
    problem = random_problem(number, shape)
    started = time.perf_counter()
    solution = ufm.solve(problem, seed=number, tol=TOL, max_steps=MAX_STEPS)
    seconds = time.perf_counter() - started
    opinion = independent.judge(independent.Claim.of(solution))
    return {
        "problem": number,
        "K": shape[0],
        "dim": shape[1],
        "status": str(solution.status),
        "steps": solution.steps,
        "escapes": sum(record["event"] is not None for record in solution.history),
        "seconds": seconds,
        "relative_gap": solution.certificate.relative_gap,
        "verified_gap": opinion.relative_gap,
        "excess": opinion.objective / opinion.optimum - 1,
        "complaints": list(opinion.complaints),
    }


def solve_group(shape: Shape, numbers: list[int], path: Path) -> None:
    """Solve all problems of one shape, compiled beforehand, and append one line for each to the file."""
    ufm.solve(random_problem(numbers[0], shape), max_steps=1)
    for number in numbers:
        line = json.dumps(solve_and_judge(number, shape)) + "\n"
        with path.open("a") as file:  # one short write: lines of several processes do not mix
            file.write(line)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    select: Any


ROWS = (
    Row("d >= K", lambda r: r["dim"] >= r["K"]),
    Row("  d = K", lambda r: r["dim"] == r["K"]),
    Row("  d = K+1, K+2", lambda r: 0 < r["dim"] - r["K"] <= 2),
    Row("  d = 2K, 4K", lambda r: r["dim"] >= 2 * r["K"] and r["dim"] - r["K"] > 2),
    Row("  K <= 20", lambda r: r["dim"] >= r["K"] and r["K"] <= 20),
    Row("  K = 50", lambda r: r["dim"] >= r["K"] and r["K"] == 50),
    Row("  K = 100", lambda r: r["dim"] >= r["K"] and r["K"] == 100),
    Row("  K = 200", lambda r: r["dim"] >= r["K"] and r["K"] == 200),
    Row("d < K", lambda r: r["dim"] < r["K"]),
)


def table(records: list[dict[str, Any]]) -> str:
    """Return the table of outcomes: certified, verified, false certificates, and steps and seconds per problem."""
    head = "problems  certified  false  nonfinite  steps median / 95 % / max   seconds median / 95 % / max"
    lines = [f"{'':16}{head}"]
    for row in ROWS:
        chosen = [record for record in records if row.select(record)]
        if not chosen:
            continue
        certified = [record for record in chosen if record["status"] == "certified"]
        false = sum(bool(record["complaints"]) for record in chosen)
        nonfinite = sum(record["status"] == "nonfinite" for record in chosen)
        steps, seconds = (
            np.quantile([record[key] for record in chosen], (0.5, 0.95, 1)) for key in ("steps", "seconds")
        )
        lines.append(
            f"{row.name:16}{len(chosen):8d}{len(certified):11d}{false:7d}{nonfinite:11d}"
            f"{steps[0]:13.0f} {steps[1]:7.0f} {steps[2]:7.0f}{seconds[0]:15.3f} {seconds[1]:7.3f} {seconds[2]:7.3f}"
        )
    return "\n".join(lines)


def summary(records: list[dict[str, Any]]) -> str:
    """Return the table, the worst certified gaps, and every failure by name."""
    certified = [record for record in records if record["status"] == "certified"]
    worst = {
        key: max(record[key] for record in certified) for key in ("relative_gap", "verified_gap", "excess")
    }
    text = [
        table(records),
        "worst certified: " + ", ".join(f"{key} {value:.1e}" for key, value in worst.items()),
    ]
    statuses = collections.Counter(r["status"] for r in records if r["dim"] < r["K"])
    text.append("d < K ended " + ", ".join(f"{name}: {count}" for name, count in statuses.most_common()))
    for record in records:
        if record["complaints"] or failed(record):
            text.append(f"FAILED {json.dumps(record)}")
    return "\n".join(text)


def failed(record: dict[str, Any]) -> bool:
    """Return whether a problem that must be certified is not."""
    return record["dim"] >= record["K"] and record["status"] != "certified"


def main(
    problems: int = 2000,
    jobs: int = 2,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Solve the problems that are not in the file yet, print the table, and return 1 if anything failed.

    Args:
        problems: number of problems.
        jobs: processes to use.
        outputs: where the file of JSON lines is that is continued; there is no picture.
        quick: 60 problems with 2 or 10 classes.
    """
    classes = QUICK_CLASSES if quick else CLASSES
    problems = 60 if quick else problems
    out = outputs.of("stress", quick).folder / "stress.jsonl"
    records = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {record["problem"] for record in records}
    groups: dict[Shape, list[int]] = collections.defaultdict(list)
    for number, shape in enumerate(shapes(classes, problems)):
        if number not in done:
            groups[shape].append(number)
    largest_first = sorted(groups.items(), key=lambda item: -item[0][0] * item[0][1])
    spawn = multiprocessing.get_context("spawn")  # a forked JAX may hang
    with concurrent.futures.ProcessPoolExecutor(jobs, spawn) as pool:
        futures = [pool.submit(solve_group, shape, numbers, out) for shape, numbers in largest_first]
        finished = concurrent.futures.as_completed(futures)
        for future in track(finished, "shapes", len(futures)):
            future.result()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    print(summary(sorted(records, key=lambda record: record["problem"])))
    return int(any(record["complaints"] or failed(record) for record in records))
