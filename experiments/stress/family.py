"""Random problems of the whole family: every convex loss, feature set, bias, level and precision, extreme ranges.

Counts log-uniform from 1 to 10^9, decays over seventeen decades, K from 2 to 16 and now and then to 300, d from K to
2 K; starts random, zero, tiny, of 1e150, or stuck where half of the coordinates lead. Each answer is judged by
`experiments.stress.judge`, which has formulas of its own, to the tolerance that was asked for.

    python -m experiments.stress.family [--problems 5000] [--seconds 600]
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from experiments.stress.judge import judge
from ufm.losses.by_name import parse_loss

#: Losses as text, and shapes (K, d) with how often they come: few, so that each is compiled once.
LOSSES = ("ce", "smoothing:0.1", "weighted:0.5", "adjustment", "cdt", "ldam", "poly1", "bce", "mse")
SHAPES = {
    (2, 2): 0.2,
    (3, 6): 0.2,
    (5, 5): 0.2,
    (10, 12): 0.2,
    (16, 20): 0.17,
    (40, 40): 0.02,
    (120, 130): 0.007,
    (300, 300): 0.003,
}
STARTS = {"random": 0.65, "zero": 0.1, "tiny": 0.1, "huge": 0.1, "stuck": 0.05}
#: Samples of a problem of sample level, per class: equal shapes again.
SAMPLES = 8
#: Relative gap asked for, the same in float32, and the most steps, with many classes fewer.
TOL, COARSE, MAX_STEPS, MANY = 1e-8, 1e-3, 20_000, 100
#: The judge confirms a gap up to this many times the one that was asked for: its bound is not the package's.
SLACK = 2.0


def random_problem(number: int) -> tuple[str, ufm.Problem, dict[str, Any]]:
    """Return the loss as text, problem ``number`` and the arguments of its solve, the same in every run."""
    rng = np.random.default_rng([2027, number])
    name = LOSSES[number % len(LOSSES)]
    K, dim = list(SHAPES)[rng.choice(len(SHAPES), p=list(SHAPES.values()))]
    level = str(
        rng.choice(
            ["class", "group", "sample"],
            p=[0.75, 0.15, 0.1 if K <= 16 else 0.0] if K <= 16 else [0.8, 0.2, 0],
        )
    )
    largest = rng.uniform(0.5, 9)
    if level == "sample":
        counts = 1 + rng.multinomial((SAMPLES - 1) * K, rng.dirichlet(np.ones(K)))
    elif level == "group":
        counts = np.floor(10 ** rng.uniform(0, largest, 3))[rng.integers(3, size=K)].astype(np.int64)
    else:
        counts = np.floor(10 ** rng.uniform(0, largest, K)).astype(np.int64)
    features = str(rng.choice(["nonnegative", "free"]))
    bias = (None, None, 0.0, 10 ** rng.uniform(-6, 0))[rng.integers(4)]
    # lambda_W lambda_H around the collapse threshold of a class, seven decades below, one above; their ratio over 10
    product = rng.choice(counts) / float(counts.sum()) ** 2 * 10 ** rng.uniform(-7, 1)
    ratio = 10 ** rng.uniform(-5, 5)
    decays = (np.sqrt(product * ratio), np.sqrt(product / ratio))
    loss = parse_loss(name, counts.astype(float))
    problem = ufm.Problem(counts, dim, *decays, loss=loss, features=features, bias=bias)
    precision = "float32" if rng.random() < 0.05 else "float64"
    kind = str(rng.choice(list(STARTS), p=list(STARTS.values())))
    if (
        level == "group"
        or (kind == "stuck" and level == "sample")
        or (kind == "huge" and precision == "float32")
    ):
        kind = "random"  # group level takes no start; 1e150 is no number of float32
    settings: dict[str, Any] = {"level": level, "precision": precision, "seed": number, "kind": kind}
    return name, problem, settings


def in_order(problems: int) -> list[int]:
    """Return the numbers of problems, those that share a compiled program together; rare and large ones last."""
    kinds: dict[Any, list[int]] = collections.defaultdict(list)
    for number in range(problems):
        name, problem, given = random_problem(number)
        size = problem.num_classes, problem.features, problem.bias is None, given["level"], given["precision"]
        kinds[name, *size].append(number)
    ordered = sorted(kinds, key=lambda kind: (kind[1] > MANY, -len(kinds[kind])))
    return [number for kind in ordered for number in kinds[kind]]


def start_of(kind: str, problem: ufm.Problem, level: str, seed: int) -> Any:
    """Return the start of a kind; None for the solver's own."""
    if kind == "random":
        return None
    if kind == "stuck":  # stationary, with coordinates that no gradient wakes
        narrow = ufm.solve(
            problem.replace(dim=max(1, problem.dim // 2)), "class", seed=seed, max_steps=2000, escapes=False
        )
        unused = ((0, 0), (0, problem.dim - narrow.problem.dim))
        padded = np.pad(narrow.weight, unused), np.pad(narrow.features, unused)
        return padded if narrow.bias is None else (*padded, narrow.bias)
    size = {"zero": 0.0, "tiny": 1e-30, "huge": 1e150}[kind]
    rng, rows = np.random.default_rng(seed), problem.num_classes if level == "class" else problem.num_samples
    weight = rng.normal(size=(problem.num_classes, problem.dim))
    return size * weight, size * np.abs(rng.normal(size=(int(rows), problem.dim)))


def solve_and_judge(number: int) -> dict[str, Any]:
    """Solve one problem and return the record of what came out and what the judge says."""
    name, problem, given = random_problem(number)
    kind = given.pop("kind")
    tol = COARSE if given["precision"] == "float32" else TOL
    start = start_of(kind, problem, given["level"], number)
    most = MAX_STEPS if problem.num_classes <= MANY else MAX_STEPS // 10
    began = time.process_time()
    solution = ufm.solve(problem, tol=tol, max_steps=most, start=start, **given)
    seconds = time.process_time() - began
    described = {
        "problem": number,
        "loss": name,
        "K": problem.num_classes,
        "dim": problem.dim,
        "features": problem.features,
        "bias": problem.bias,
        "start": kind,
        "smallest": int(problem.counts.min()),
        "largest": int(problem.counts.max()),
        "decays": [problem.weight_decay, problem.feature_decay],
    }
    outcome = {"status": str(solution.status), "steps": solution.steps, "seconds": round(seconds, 2)}
    gaps = {"gap": solution.certificate.relative_gap, "residual": solution.certificate.residual, "tol": tol}
    began = time.process_time()
    return (
        described
        | given
        | outcome
        | gaps
        | judge(name, solution)
        | {"judging": round(time.process_time() - began, 2)}
    )


def verdict(record: dict[str, Any]) -> str:
    """Return what is to be said of a record, nothing if it is certified and confirmed.

    ``FALSE``: the judge contradicts; ``unconfirmed``: its bound does not reach; ``open: bound``: the judge finds the
    point optimal that the package does not certify; ``open: point``: it does not.
    """
    confirmed = record["judged_gap"] <= SLACK * record["tol"]
    if record["complaints"]:
        return "FALSE"
    if record["status"] == "certified":
        return "" if confirmed else "unconfirmed"
    return "open: bound" if confirmed else "open: point"


def table(records: list[dict[str, Any]]) -> str:
    """Return outcomes by loss, and every exception by name with what is known of it."""
    lines = [f"{'loss':14} problems  certified  confirmed  false  steps: median and 99 %"]
    kinds: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in records:
        kinds[record["loss"]].append(record)
    for name, own in [*sorted(kinds.items()), ("all", records)]:
        steps = np.quantile([record["steps"] for record in own], (0.5, 0.99))
        certified = [record for record in own if record["status"] == "certified"]
        confirmed, false = (
            sum(verdict(r) == text for r in part) for part, text in ((certified, ""), (own, "FALSE"))
        )
        lines.append(
            f"{name:14}{len(own):9}{len(certified):11}{confirmed:11}{false:7}{steps[0]:9.0f}{steps[1]:9.0f}"
        )
    told = ((verdict(record), record) for record in records)
    lines += [f"{text}: {json.dumps(record)}" for text, record in told if text]
    return "\n".join(lines)


def main(
    problems: int = 5000,
    seconds: float = 1e9,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
    solve: tyro.conf.Suppress[Callable[[int], dict[str, Any]]] = solve_and_judge,
) -> int:
    """Solve the problems that are not in the file yet, print the table, return 1 if the judge objects to any.

    Args:
        problems: number of problems.
        seconds: stop after so many; a second run continues.
        outputs: where the file of JSON lines is; there is no picture.
        quick: the first three of them.
        solve: from a number to its record.
    """
    problems = min(problems, 3) if quick else problems
    out = outputs.of("stress_family", quick).folder / "family.jsonl"
    lines = out.read_text().splitlines() if out.exists() else []
    done, until = {json.loads(line)["problem"] for line in lines}, time.monotonic() + seconds
    for number in in_order(problems):
        if number not in done and time.monotonic() < until:
            with out.open("a") as file:
                file.write(json.dumps(solve(number)) + "\n")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    print(table(records))
    return int(any(verdict(record) == "FALSE" for record in records))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
