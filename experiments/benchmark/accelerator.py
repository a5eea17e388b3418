"""One command for a new device: is it right, and how fast is it against what it can do? In about ten minutes.

Correctness first: the same problems at every level, on the device and on a CPU, both certified and equal. Then
milliseconds per step against measured copy bandwidth and multiply rate, block counts, peak memory, the class and the
group level at many classes, phase diagrams, how much float32 gains over float64, and Torch's Adam with clamped
features where Torch is there (on the same device, if it has been built for it). What would begin after the time is
up, or does not fit into memory, is said to be left out.

    python -m experiments.benchmark.accelerator            # on a GPU or TPU
    python -m experiments.benchmark.accelerator --quick    # anywhere, small sizes: what the tests run
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.benchmark.race import Record, machine, workload
from experiments.benchmark.roofline import median_seconds, roofline, step_seconds
from experiments.common import Outputs
from ufm.model.problem import Level
from ufm.solvers.settings import RESIDUALS
from ufm.text import plain_table, progress_bar

PRECISIONS = tuple(sorted(RESIDUALS))
TOLERANCES = {"float32": 1e-5, "float64": 1e-8}
#: Seconds after which nothing new begins.
TIME = 560.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: problems whose steps are held against the machine, and what else, by size."""

    steps: dict[str, ufm.Problem]
    blocks: tuple[int, ...]
    classes: tuple[tuple[Level, int], ...]
    diagrams: tuple[int, ...]


FULL = Sizes(
    {
        "N=10^6, d=512, K=10": ufm.Problem([100_000] * 10, 512, 1e-3, 1e-9),
        "ImageNet-LT (reconstructed), d=2048": workload("imagenet-lt", 2048, 1e-4, 1e-10),
    },
    (1, 4, 16, 64),
    (("class", 1000), ("group", 1000), ("group", 8142), ("class", 8142)),
    (64, 512),
)
QUICK = Sizes(
    {"N=300, d=16": ufm.Problem([100] * 3, 16, 1e-3, 1e-6)}, (1, 4), (("class", 12), ("group", 12)), (4,)
)
Job = tuple[str, str, Callable[[], Record]]


def correctness(level: Level, precision: str) -> Record:
    """Solve on the device and on a CPU: both certified, and the optima equal to what the gaps allow."""
    problem, tol = ufm.Problem([40, 20, 20, 5], 8, 1e-2, 1e-3, bias=1e-2), TOLERANCES[precision]
    found = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            devices = [device] if level == "sample" else None
            found.append(ufm.solve(problem, level, precision=precision, tol=tol, devices=devices))
    here, there = (solution.certificate for solution in found)
    apart = abs(here.objective / there.objective - 1)
    right = all(solution.certified for solution in found) and apart <= 2 * tol
    return {"right": bool(right), "difference": apart, "gap": here.relative_gap}


def step(problem: ufm.Problem, precision: str) -> Record:
    """Return a step of the sample level against the machine, and the peak memory so far."""
    return roofline(problem, precision) | {"peak_bytes": peak_memory()}


def in_blocks(problem: ufm.Problem, blocks: int, precision: str = "float32") -> Record:
    """Return a step of the sample level with so many blocks on the device."""
    return step_seconds(problem, "sample", precision, blocks=blocks) | {"peak_bytes": peak_memory()}


def many_classes(level: Level, classes: int, precision: str) -> Record:
    """Return a step of the class level, or a whole solve of the group level, at so many classes."""
    counts = np.maximum(1000 * np.geomspace(1, 1e-2, classes).round(1), 5).astype(int)
    problem = ufm.Problem(counts, classes, 1e-4, 1e-3 / counts.sum())
    if level == "class":
        return step_seconds(problem, level, precision)
    started = time.perf_counter()
    solution = ufm.solve(problem, level, precision=precision, tol=TOLERANCES[precision])
    seconds = time.perf_counter() - started
    return {"seconds": seconds / max(solution.steps, 1), "solve": seconds, "certified": solution.certified}


def diagram(side: int, precision: str) -> Record:
    """Return the time of a phase diagram of side times side problems, the programs compiled before."""
    fixed = {"counts": "exp:K=10,n_max=5000", "dim": 16, "precision": precision, "tol": TOLERANCES[precision]}

    def solve(side: int) -> Any:
        ratios, weights = np.geomspace(1, 100, side), np.geomspace(1e-3, 1e-1, side)
        return ufm.sweep(fixed, {"counts.ratio": ratios.tolist(), "nuclear_weight": weights.tolist()})

    solve(min(side, 64))
    started = time.perf_counter()
    found = solve(side)
    seconds = time.perf_counter() - started
    return {"solve": seconds, "seconds": seconds / side**2, "certified": bool(found.certified.all())}


def torch_adam(problem: ufm.Problem) -> Record:
    """Return a step of Torch's Adam with clamped features in float32, on the accelerator where Torch has it."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weight, features = (
        torch.rand((rows, problem.dim), device=device, requires_grad=True)
        for rows in (problem.num_classes, problem.num_samples)
    )
    labels = torch.tensor(np.repeat(np.arange(problem.num_classes), problem.counts), device=device)
    optimizer = torch.optim.Adam([weight, features], lr=1e-2)

    def one_step() -> None:
        loss = torch.nn.functional.cross_entropy(features @ weight.T, labels)
        loss = loss + problem.weight_decay / 2 * weight.square().sum()
        loss = loss + problem.feature_decay / 2 * features.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            features.clamp_(min=0)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {"seconds": median_seconds(one_step), "device": str(device)}


def peak_memory() -> int | None:
    """Return the most bytes that the device has held so far, where it tells."""
    found = jax.devices()[0].memory_stats()
    return None if not found else found.get("peak_bytes_in_use")


def jobs(sizes: Sizes) -> Iterator[Job]:
    """Yield (part, words, work), what matters most first."""
    first = next(iter(sizes.steps.values()))
    for precision in PRECISIONS:
        for level in ("class", "group", "sample"):
            yield "correctness", f"{level}, {precision}", functools.partial(correctness, level, precision)
    for name, problem in sizes.steps.items():
        for precision in PRECISIONS:
            yield "step", f"{name}, {precision}", functools.partial(step, problem, precision)
    for blocks in sizes.blocks:
        yield "blocks", f"{blocks} blocks, float32", functools.partial(in_blocks, first, blocks)
    for side in sizes.diagrams:
        for precision in PRECISIONS:
            yield "diagram", f"{side} x {side}, {precision}", functools.partial(diagram, side, precision)
    for level, classes in sizes.classes:
        for precision in PRECISIONS:
            words = f"{level} level, K={classes}, {precision}"
            yield "classes", words, functools.partial(many_classes, level, classes, precision)
    if importlib.util.find_spec("torch") is not None:
        for name, problem in sizes.steps.items():
            yield "torch Adam", f"{name}, float32", functools.partial(torch_adam, problem)


def measured(work: Callable[[], Record], left: float) -> Record:
    """Do one job, or say why it was left out: the time is up, or memory."""
    if left <= 0:
        return {"left_out": "the time is up"}
    try:
        return work()
    except (RuntimeError, MemoryError) as reason:  # jax and torch say so when memory is short
        return {"left_out": str(reason).strip().partition("\n")[0][:60]}


def table(records: list[Record]) -> str:
    """Return one line per job: seconds of a step or problem, shares of the machine, memory, what is right."""
    header = ["part", "", "ms", "x bound", "copy", "GEMM", "peak", ""]
    return plain_table(header, [_row(record) for record in records])


def _row(record: Record) -> list[str]:
    def cell(name: str, form: str, scale: float = 1.0) -> str:
        value = record.get(name)
        return "-" if value is None else format(value * scale, form)

    words = {"right": "right" if record.get("right") else "WRONG", "certified": "certified"}
    said = [text for name, text in words.items() if name in record and (name == "right" or record[name])]
    if "certified" in record and not record["certified"]:
        said.append("NOT CERTIFIED")
    said += [record[name] for name in ("left_out", "device") if name in record]
    return [
        record["part"],
        record["job"],
        cell("seconds", ".3g", 1e3),
        cell("times_bound", ".2f"),
        cell("bandwidth_share", ".0%"),
        cell("rate_share", ".0%"),
        cell("peak_bytes", ".2f", 2**-30),
        ", ".join(said),
    ]


def gains(records: list[Record]) -> dict[str, float]:
    """Return how many times as fast float32 is as float64, by job."""
    times = {(r["part"], r["job"]): r["seconds"] for r in records if "seconds" in r}
    found = {}
    for part, job in times:
        double = job.removesuffix("32") + "64"
        if job.endswith("float32") and (part, double) in times:
            name = f"{part}: {job.removesuffix(', float32')}"
            found[name] = times[part, double] / times[part, job]
    return found


def main(outputs: OmitArgPrefixes[Outputs] = Outputs(), quick: bool = False) -> int:
    """Measure, print the table, save JSON; return 1 if anything is wrong.

    Args:
        outputs: where the figures (JSON) go.
        quick: small sizes, on any machine.
    """
    results, started = outputs.of("accelerator", quick), time.perf_counter()
    todo, records = list(jobs(QUICK if quick else FULL)), []
    with progress_bar(True, "measuring", len(todo), stays=True) as bar:
        for part, words, work in todo:
            left = TIME - (time.perf_counter() - started)
            records.append({"part": part, "job": words} | measured(work, left))
            bar.advance()
    results.save({"machine": machine(), "jobs": records, "float32_gain": gains(records)})
    print(f"{machine()['device']}, memory in GiB\n{table(records)}")
    print(*(f"float32 is {gain:.2f} times as fast: {job}" for job, gain in gains(records).items()), sep="\n")
    return int(any(not record.get("right", True) for record in records))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
