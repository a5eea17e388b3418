"""How fast could a step be? The time of one step of the default solver against what the machine can do.

A step of the sample-level problem must read both last iterates and write one (3 N d numbers) and multiply three times
(logits, classifier gradient, feature gradient: 6 N d K operations). The machine's own copy bandwidth and
matrix-multiply rate are measured in the same run, in the same precision, on the same device: the bound is the longer
of the two times, and what a step that overlaps nothing would take is their sum.

Not a script: a part of `python -m experiments.benchmark`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from ufm.model.devices import choose_layout
from ufm.model.objective import to_point
from ufm.model.problem import Level
from ufm.model.stack import build_objective, random_start, scaling
from ufm.solvers.compiled import advance_rounds, begin

REPEATS = 7
#: Bytes that are copied and operations that are multiplied: far more than fits a cache or the cost of a call.
COPIED, MULTIPLIED = 2**28, 2**34


def median_seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median time of a call, the first not counted."""
    jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def copy_bandwidth(dtype: str) -> float:
    """Return bytes per second, read and written, of copying an array far larger than any cache.

    On a CPU every core copies its part into memory that has been touched before; on an accelerator JAX scales the
    array in place.
    """
    size = COPIED // jnp.dtype(dtype).itemsize
    if jax.devices()[0].platform == "cpu":
        source, target = np.ones(size, dtype), np.ones(size, dtype)
        parts = np.array_split(np.arange(size), os.cpu_count() or 1)
        halves = [slice(part[0], part[-1] + 1) for part in parts]
        with concurrent.futures.ThreadPoolExecutor(len(halves)) as pool:
            seconds = median_seconds(
                lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), halves))
            )
        return 2 * source.nbytes / seconds
    array, one = jnp.ones(size, dtype), jnp.ones((), dtype)
    scale = jax.jit(lambda x, one: x * one, donate_argnums=0)
    moved = 2 * array.nbytes

    def in_place() -> jax.Array:
        nonlocal array
        array = scale(array, one)
        return array

    return moved / median_seconds(in_place)


def multiply_rate(dtype: str) -> float:
    """Return operations per second of a product of square matrices."""
    size = int((MULTIPLIED / 2) ** (1 / 3))
    a = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    return 2 * size**3 / median_seconds(lambda: multiply(a))


def step_seconds(
    problem: ufm.Problem, level: Level, dtype: str, seconds: float = 1.0, blocks: int | None = None
) -> dict[str, float]:
    """Return the median time of a step, and what the compiled program holds, in feature matrices.

    Args:
        problem: the problem.
        level: level of the feature rows.
        dtype: ``"float32"`` or ``"float64"``.
        seconds: about how long to measure.
        blocks: into how many blocks each device cuts its rows; None: as many as the solver would.
    """
    rule = ufm.Accelerated()
    with jax.enable_x64(dtype == "float64"):
        rows = problem.num_samples if level == "sample" else problem.num_classes
        layout = choose_layout(rows, problem.dim, jnp.dtype(dtype).itemsize) if level == "sample" else None
        if layout is not None and blocks is not None:
            share = -(-rows // layout.mesh.size)
            layout = dataclasses.replace(layout, block=-(-share // blocks), blocks=blocks)
        objective = build_objective(problem, level, rule.coordinates, dtype, layout)
        scales = scaling(problem, level, rule.coordinates)
        point = to_point(random_start(problem, level, 0), scales, dtype, layout)
        state = begin(rule, objective, point, jnp.ones((), dtype))
        memory = _memory(rule, objective, state)

        def rounds(count: int) -> float:
            nonlocal state
            started = time.perf_counter()
            state = jax.block_until_ready(advance_rounds(rule, objective, state, count, 2))
            return time.perf_counter() - started

        rounds(1)
        count = max(1, round(seconds / REPEATS / rounds(1)))
        each = float(np.median([rounds(count) for _ in range(REPEATS)])) / (2 * count)
    features = rows * problem.dim * jnp.dtype(dtype).itemsize
    found = {"seconds": each, "features_bytes": float(features)}
    if memory is not None:  # not every backend tells
        found["arguments"] = memory.argument_size_in_bytes / features
        found["temporaries"] = memory.temp_size_in_bytes / features
    return found


def _memory(rule: ufm.Accelerated, objective: Any, state: Any) -> Any:
    """Return what XLA says about the memory of two compiled steps, made in the place of their state."""
    parts, structure = jax.tree.flatten(state)

    def two_steps(objective: Any, parts: Any) -> Any:
        return advance_rounds(rule, objective, jax.tree.unflatten(structure, parts), 1, 2)

    leaves, whole = jax.tree.flatten(objective)
    steps = jax.jit(
        lambda leaves, parts: two_steps(jax.tree.unflatten(whole, leaves), parts), donate_argnums=1
    )
    return steps.lower(leaves, parts).compile().memory_analysis()


def roofline(problem: ufm.Problem, dtype: str) -> dict[str, float]:
    """Return step time, bound and fractions reached for the sample level of a problem."""
    with jax.enable_x64(dtype == "float64"):
        bandwidth, rate = copy_bandwidth(dtype), multiply_rate(dtype)
    found = step_seconds(problem, "sample", dtype)
    traffic = 3 * found["features_bytes"] / bandwidth
    products = 6 * problem.num_samples * problem.dim * problem.num_classes / rate
    return found | {
        "bandwidth": bandwidth,
        "rate": rate,
        "traffic_seconds": traffic,
        "products_seconds": products,
        "times_bound": found["seconds"] / max(traffic, products),
        "times_sum": found["seconds"] / (traffic + products),
        "bandwidth_share": traffic / found["seconds"],
        "rate_share": products / found["seconds"],
    }
