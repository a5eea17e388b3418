"""What users wait for: whole processes of `ufm solve`, and a member of a sweep against one solved alone.

Not a script: a part of `python -m experiments.benchmark`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import ufm
from ufm.model.problem import Level
from ufm.profiles import parse_counts
from ufm.text import plain_table

Record = dict[str, Any]


class Size(NamedTuple):
    """A long tail of so many classes: counts by name, dimension, both decays, and the levels that bear it."""

    counts: str
    dim: int
    decay: float
    levels: tuple[Level, ...]


SIZES = {
    10: Size("cifar10-lt-100", 64, 1e-4, ("class", "group")),
    100: Size("cifar100-lt-100", 128, 1e-4, ("class", "group")),
    365: Size("places-lt", 512, 1e-4, ("class", "group")),
    1000: Size("imagenet-lt", 1024, 1e-4, ("group",)),
    8142: Size("inaturalist", 8192, 1e-4, ("group",)),
}
#: Classes of the sweeps that are held against single solves, and how many members they have.
SWEPT = {10: 64, 30: 64, 100: 32, 300: 8}
#: Runs a command from a small process: what a large one starts is charged for its parent's memory.
_CHILD = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
printed = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True, check=True).stdout
wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
found = {"wall": wall, "processor": used.ru_utime + used.ru_stime, "peak": peak, "printed": printed}
print(json.dumps(found))
"""


def whole_process(num_classes: int, level: Level) -> list[Record]:
    """Run ``ufm solve`` twice with a cache of its own: wall and processor seconds, peak memory, and the end."""
    size = SIZES[num_classes]
    command = [sys.executable, "-m", "ufm", "solve", "--json", "--figure", "None", "--counts", size.counts]
    command += ["--dim", str(size.dim), "--level", level]
    command += ["--weight-decay", str(size.decay), "--feature-decay", str(size.decay)]
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    record: Record = {"num_classes": num_classes, "level": level}
    with tempfile.TemporaryDirectory() as cache:
        for call in ("first", "second"):
            record[call] = _measured(command, kept | {"UFM_COMPILED": cache})
    return [record]


def _measured(command: list[str], environment: dict[str, str]) -> Record:
    """Return what a process took, and the status, gap and steps that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    found = json.loads(done.stdout)
    printed = json.loads(found.pop("printed"))
    return found | {name: printed[name] for name in ("status", "relative_gap", "steps")}


def process_table(records: list[Record]) -> str:
    """Return seconds of the first and the second call, peak memory, steps and gap."""
    header = ["K", "level", "first call", "second", "processor", "peak", "steps", "gap"]
    rows = [
        [
            f"{record['num_classes']:,}",
            record["level"],
            f"{record['first']['wall']:.1f} s",
            f"{second['wall']:.1f} s",
            f"{second['processor']:.1f} s",
            f"{second['peak'] / 1e6:.0f} MB",
            str(second["steps"]),
            f"{second['relative_gap']:.0e}",
        ]
        for record in records
        for second in [record["second"]]
    ]
    return plain_table(header, rows)


def swept_alone(num_classes: int, members: int) -> list[Record]:
    """Return `swept` of a process of its own, in which the processor is one device, as for most users."""
    work = f"import json; from {__name__} import swept; print(json.dumps(swept({num_classes}, {members})))"
    done = subprocess.run([sys.executable, "-c", work], stdout=subprocess.PIPE, check=True)
    found: list[Record] = json.loads(done.stdout)
    return found


def swept(num_classes: int, members: int) -> list[Record]:
    """Return seconds of wall and processor per start, in a sweep and one by one, compiled before; class level."""
    counts = f"500x{num_classes // 2},50x{num_classes // 2}"
    decays = {"weight_decay": 5e-3, "feature_decay": 1e-6 * 10 / num_classes}
    problem, seeds = ufm.Problem(parse_counts(counts), num_classes + 6, **decays), list(range(members))
    fixed = {"counts": counts, "dim": num_classes + 6, "level": "class", **decays}

    def alone() -> None:
        for seed in seeds:
            ufm.solve(problem, "class", seed=seed)

    def together() -> None:
        if not bool(ufm.sweep(fixed, {"seed": seeds}).certified.all()):
            raise RuntimeError("a member of the sweep is not certified")

    record: Record = {"num_classes": num_classes, "members": members}
    for name, work in (("alone", alone), ("together", together)):
        work()
        started = time.perf_counter(), time.process_time()
        work()
        record[name] = (time.perf_counter() - started[0]) / members
        record[f"{name}_processor"] = (time.process_time() - started[1]) / members
    return [record]


def sweep_table(records: list[Record]) -> str:
    """Return wall and processor time per member, and what sweeping gains."""
    header = ["K", "members", "alone", "together", "gain", "processor", "together", "gain"]
    rows = [
        [
            str(r["num_classes"]),
            str(r["members"]),
            *(
                cell
                for kind in ("", "_processor")
                for alone, together in [(r[f"alone{kind}"], r[f"together{kind}"])]
                for cell in (f"{1e3 * alone:.3g} ms", f"{1e3 * together:.3g} ms", f"{alone / together:.2f}")
            ),
        ]
        for r in records
    ]
    return plain_table(header, rows)
