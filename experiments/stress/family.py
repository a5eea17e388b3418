"""Random problems of the whole family: every convex loss, feature set, bias, level and precision, extreme ranges.

Counts log-uniform from 1 to 10^9, decays over seventeen decades, K from 2 to 20 and d from K to 2 K, starts random,
zero, tiny or of 1e150. The judge computes losses by formulas of its own, in the plainest form, and their gradients by
automatic differentiation; it knows no conjugate. For convex losses ``loss(z) >= loss(z0) + <Q, z - z0>`` with Q the
gradient at the returned logits, and ``<a Q, W H> >= -polar(A) R`` with R the regulariser, so with ``R* <= P* <= P``

    ``P* >= sum_k a_k (loss_k(z_k) - <Q_k, z_k>) - max(polar(A) - 1, 0) P``    (less what the bias could gain).

That bound is of first order in the residual: the judge confirms to `CONFIRMED` what the package certifies to 1e-8.

    python -m experiments.stress.family [--problems 5000]
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.losses.by_name import parse_loss

#: Losses as text, and shapes (K, d): few, so that each is compiled once.
LOSSES = ("ce", "smoothing:0.1", "weighted:0.5", "adjustment", "cdt", "ldam", "poly1", "bce", "mse")
SHAPES = ((2, 2), (3, 6), (5, 5), (10, 12), (20, 20))
STARTS = ("random", "zero", "tiny", "huge")
TOL, MAX_STEPS, CONFIRMED = 1e-8, 20_000, 1e-5


def own_loss(name: str, z: Any, k: int, n: np.ndarray) -> Any:
    """Return the loss of logits z of class k, written out; n are the counts."""
    K, share = len(n), n / n.sum()
    form = name.split(":")[0]
    if form == "mse":
        return jnp.sum((z - jnp.eye(K)[k]) ** 2) / 2
    if form == "bce":
        return jnp.sum(jnp.logaddexp(0.0, jnp.where(jnp.arange(K) == k, -z, z)))
    if form == "adjustment":
        z = z + np.log(share)
    if form == "cdt":
        z = z * (n / n.max()) ** 0.1
    if form == "ldam":
        z = z - jnp.eye(K)[k] * 0.5 * (n.min() / n[k]) ** 0.25
    others = jax.scipy.special.logsumexp(jnp.delete(z, k))
    hard = jnp.logaddexp(0.0, others - z[k])
    if form == "smoothing":
        return hard + 0.1 * (z[k] - jnp.mean(z))
    if form == "poly1":
        return hard + jax.nn.sigmoid(others - z[k])
    return hard * (n[k] ** -0.5 / np.sum(share * n**-0.5) if form == "weighted" else 1.0)


def judge(name: str, solution: Any) -> dict[str, Any]:
    """Recompute objective and gap of a solution from its arrays, and say what does not fit."""
    problem, n = solution.problem, np.asarray(solution.problem.counts, float)
    share, lam = n / n.sum(), (problem.weight_decay, problem.feature_decay)
    rows = [np.flatnonzero(solution.labels == k) for k in range(len(n))]
    features = np.stack([solution.features[own].mean(axis=0) for own in rows])
    bias = np.zeros(len(n)) if solution.bias is None else solution.bias
    logits = features @ solution.weight.T + bias
    with jax.enable_x64(True):
        found = [
            jax.value_and_grad(lambda z, k=k: own_loss(name, z, k, n))(jnp.asarray(logits[k]))
            for k in range(len(n))
        ]
    losses, slopes = np.array([float(v) for v, _ in found]), np.stack([np.asarray(g) for _, g in found])
    value = share @ losses + lam[0] * np.sum(solution.weight**2) / 2
    value += lam[1] * n @ np.sum(features**2, axis=1) / 2 + (problem.bias or 0.0) * bias @ bias / 2
    dual = slopes * (np.sqrt(n) / n.sum() / np.sqrt(lam[0]) / np.sqrt(lam[1]))[:, None]
    gram = dual @ dual.T
    polar = np.sqrt(np.linalg.eigvalsh(gram if problem.features == "free" else np.maximum(gram, 0))[-1])
    total = share @ slopes
    lost = 0.0
    if problem.bias is not None:
        lost = total @ total / 2 / problem.bias if problem.bias else 2 * abs(total) @ abs(bias)
    bound = share @ (losses - np.sum(slopes * (logits), axis=1)) - max(polar - 1, 0) * value - lost
    objections = {
        "negative feature": problem.features == "nonnegative" and solution.features.min() < 0,
        "objective": not abs(value - solution.objective) <= 1e-9 * abs(value),
        "reported bound above the objective": not solution.certificate.lower_bound <= value * (1 + 1e-9),
    }
    return {
        "judged_gap": float((value - bound) / value),
        "complaints": [text for text, holds in objections.items() if holds],
    }


def random_problem(number: int) -> tuple[str, ufm.Problem, dict[str, Any]]:
    """Return the loss as text, problem ``number`` and the arguments of its solve, the same in every run."""
    rng = np.random.default_rng([2026, number])
    name = LOSSES[number % len(LOSSES)]
    K, dim = SHAPES[rng.integers(len(SHAPES))]
    counts = np.floor(10 ** rng.uniform(0, rng.uniform(0.5, 9), K)).astype(np.int64)
    features = str(rng.choice(["nonnegative", "free"]))
    bias = (None, None, 0.0, 10 ** rng.uniform(-6, 0))[rng.integers(4)]
    # lambda_W lambda_H around the collapse threshold of a class, seven decades below, one above; their ratio over 10
    product = rng.choice(counts) / float(counts.sum()) ** 2 * 10 ** rng.uniform(-7, 1)
    ratio = 10 ** rng.uniform(-5, 5)
    decays = (np.sqrt(product * ratio), np.sqrt(product / ratio))
    loss = parse_loss(name, counts.astype(float))
    problem = ufm.Problem(counts, dim, *decays, loss=loss, features=features, bias=bias)
    level = "sample" if counts.sum() <= 200 and rng.random() < 0.5 else "class"
    precision = "float32" if rng.random() < 0.1 else "float64"
    kind = STARTS[int(rng.choice(4, p=[0.7, 0.1, 0.1, 0.1]))]
    settings: dict[str, Any] = {"level": level, "precision": precision, "seed": number, "kind": kind}
    return name, problem, settings


def start_of(kind: str, problem: ufm.Problem, level: str, seed: int) -> Any:
    """Return the start of a kind: zero, tiny (1e-30) or huge (1e150); None for the solver's own."""
    if kind == "random":
        return None
    size = {"zero": 0.0, "tiny": 1e-30, "huge": 1e150}[kind]
    rng, rows = np.random.default_rng(seed), problem.num_classes if level == "class" else problem.num_samples
    weight, features = (
        rng.normal(size=(problem.num_classes, problem.dim)),
        rng.normal(size=(rows, problem.dim)),
    )
    return size * weight, size * np.abs(features)


def solve_and_judge(number: int) -> dict[str, Any]:
    """Solve one problem and return the record of what came out and what the judge says."""
    name, problem, given = random_problem(number)
    kind = given.pop("kind")
    tol = 1e-3 if given["precision"] == "float32" else TOL
    if given["precision"] == "float32" and kind == "huge":
        kind = "random"  # no number of that precision
    start = start_of(kind, problem, given["level"], number)
    began = time.process_time()
    solution = ufm.solve(problem, tol=tol, max_steps=MAX_STEPS, start=start, **given)
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
    outcome = {"status": str(solution.status), "steps": solution.steps, "seconds": seconds}
    gaps = {"gap": solution.certificate.relative_gap, "residual": solution.certificate.residual, "tol": tol}
    return described | given | outcome | gaps | judge(name, solution)


def false(record: dict[str, Any]) -> bool:
    """Return whether the judge objects, or finds a larger gap at a point that is certified and stationary."""
    precise = (
        record["status"] == "certified" and record["residual"] <= 1e-7 and record["precision"] == "float64"
    )
    shares = record["features"] == "nonnegative" and record["loss"] in ("adjustment", "cdt", "bce")
    shares = shares or (record["features"] == "nonnegative" and record["bias"] is not None)
    return bool(record["complaints"]) or (precise and not shares and not record["judged_gap"] <= CONFIRMED)


def table(records: list[dict[str, Any]]) -> str:
    """Return outcomes by loss, and every exception by name with what is known of it."""
    lines = [f"{'loss':14} problems  certified  false  median and 99 % of the steps"]
    kinds: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in records:
        kinds[record["loss"]].append(record)
    for name, own in [*sorted(kinds.items()), ("all", records)]:
        steps = np.quantile([record["steps"] for record in own], (0.5, 0.99))
        certified = sum(record["status"] == "certified" for record in own)
        lines.append(
            f"{name:14}{len(own):9}{certified:11}{sum(map(false, own)):7}{steps[0]:9.0f}{steps[1]:9.0f}"
        )
    for record in records:
        if record["status"] != "certified" or false(record):
            where = "the bound" if record["residual"] <= 1e-7 else "the point"
            lines.append(f"{'FALSE' if false(record) else 'open: ' + where} {json.dumps(record)}")
    return "\n".join(lines)


def main(
    problems: int = 5000,
    seconds: float = 1e9,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    solve: tyro.conf.Suppress[Callable[[int], dict[str, Any]]] = solve_and_judge,
) -> int:
    """Solve the problems that are not in the file yet, print the table, return 1 if the judge objects to any.

    Args:
        problems: number of problems.
        seconds: stop after so many; a second run continues.
        outputs: where the file of JSON lines is; there is no picture.
        solve: from a number to its record.
    """
    out = outputs.of("stress_family").folder / "family.jsonl"
    lines = out.read_text().splitlines() if out.exists() else []
    done, until = {json.loads(line)["problem"] for line in lines}, time.monotonic() + seconds
    for number in range(problems):
        if number not in done and time.monotonic() < until:
            with out.open("a") as file:
                file.write(json.dumps(solve(number)) + "\n")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    print(table(records))
    return int(any(map(false, records)))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
