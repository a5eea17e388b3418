"""How many classes collapse? Imbalance ratio against sqrt(lambda_W lambda_H), solved beside predicted.

Ten classes in d = 16 dimensions, an exponential long tail of imbalance ratio 1 to 100, 64 x 64 problems. Every one is
solved from a random start to a certified global optimum, and its set of collapsed classes is compared with the closed
form. Close to a threshold the margin is smaller than a duality gap can tell from zero: such members are listed, and
count as differing only if the gap could have told.

The time per problem is compared with that of solving problems one by one: in turns, 64 random ones alone and a batch
that holds them, same settings, after compilation; medians over the turns, by the clock and in processor time (which
other programs on the machine disturb less).

    python -m experiments.figures.phase_diagram [--resume] [--quick] [--suffix pdf]
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np
import tyro
import xarray as xr
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.plots.style import PAGE, canvas
from ufm.plots.sweep import draw_phases
from ufm.sweeps import summary
from ufm.sweeps.batch_work import solve_together
from ufm.sweeps.grid import make_grid
from ufm.sweeps.plan import BATCH_SIZE, WIDTH
from ufm.verification.resolution import gap_tolerances

FIXED = {"counts": "exp:K=10,n_max=5000", "dim": 16, "tol": 1e-8}
TURNS, SINGLES = 5, 64


def axes_of(size: int) -> dict[str, Any]:
    """Return the axes of a diagram of ``size`` x ``size`` problems."""
    ratios = {"start": 1.0, "stop": 100.0, "num": size, "spacing": "log"}
    weights = {"start": 4e-4, "stop": 8e-3, "num": size, "spacing": "log"}
    return {"counts.ratio": ratios, "nuclear_weight": weights}


def mismatches(dataset: xr.Dataset, size: int) -> list[dict[str, Any]]:
    """Return the members whose collapsed classes differ from the prediction, and whether their gap can tell."""
    members = list(make_grid(FIXED, axes_of(size)).members())
    found = []
    for position in np.argwhere(dataset.collapse_mismatches.values > 0):
        here = dataset.isel(dict(zip(dataset.status.dims, position, strict=True)))
        problem = members[int(np.ravel_multi_index(tuple(position), dataset.status.shape))].problem
        differing = here.collapsed.values != here.predicted_collapsed.values
        gap = max(float(here.relative_gap), 1e-13) * float(here.objective)
        tolerances = gap_tolerances(ufm.predict(problem), gap)
        assert tolerances is not None  # cross-entropy says what a gap pins down
        resolved = tolerances.resolved
        found.append(
            {
                "ratio": float(here.ratio),
                "nuclear_weight": float(here.nuclear_weight),
                "classes": np.flatnonzero(differing).tolist(),
                "margins": here.margins.values[differing].tolist(),
                "predicted": here.predicted_margins.values[differing].tolist(),
                "resolvable": here.zero_margins.values[differing].tolist(),
                "could_tell": bool(np.any(resolved & differing)),
            }
        )
    return found


def compare_speed(size: int) -> dict[str, float]:
    """Return median seconds per problem, one by one and in batches, taken in turns on the same problems."""
    members = list(make_grid(FIXED, axes_of(size)).members())
    order = np.random.default_rng(0).permutation(len(members))
    batch = [members[i] for i in order[:BATCH_SIZE]]
    solve_together(batch, min(WIDTH, len(batch)))  # compiles
    ufm.solve(batch[0].problem)
    clocks: list[np.ndarray] = []
    for turn in range(TURNS):
        singles = [batch[(turn * SINGLES + i) % len(batch)] for i in range(SINGLES)]
        started = np.array([time.perf_counter(), time.process_time()])
        for member in singles:
            ufm.solve(member.problem)
        middle = np.array([time.perf_counter(), time.process_time()])
        solve_together(batch, min(WIDTH, len(batch)))
        ended = np.array([time.perf_counter(), time.process_time()])
        clocks.append(np.concatenate([(middle - started) / len(singles), (ended - middle) / len(batch)]))
    names = ("one_by_one", "one_by_one_processor", "batched", "batched_processor")
    found = dict(zip(names, np.median(clocks, axis=0).tolist(), strict=True))
    ratios = np.median([clock[:2] / clock[2:] for clock in clocks], axis=0)
    return found | {
        "ratio": float(ratios[0]),
        "ratio_processor": float(ratios[1]),
        "load": os.getloadavg()[0],
    }


def figure(dataset: xr.Dataset) -> Figure:
    """Return the diagram: solved beside predicted."""
    with canvas(PAGE, 2.6) as drawn:
        panels: Any = list(drawn.subplots(1, 2, sharey=True))
        draw_phases(drawn, panels, dataset)
        panels[1].set_ylabel("")
        differing = int((dataset.collapse_mismatches > 0).sum())
        panels[0].set_title(f"solved: {differing or 'none'} of {dataset.status.size:,} differ", loc="left")
    return drawn


def main(
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    speed: bool = True,
    resume: bool = False,
    quick: bool = False,
) -> int:
    """Solve the diagram, draw it, list what differs; return 1 if anything is uncertified or truly different.

    Args:
        outputs: where results and the picture go.
        speed: also compare with solving one by one.
        resume: go on with the data set of an earlier run.
        quick: 12 x 12 problems.
    """
    size = 12 if quick else 64
    results = outputs.of("phase_diagram", quick)
    report: dict[str, Any] = {"speed": compare_speed(size)} if speed else {}
    started = time.perf_counter(), time.process_time()
    dataset = ufm.sweep(
        FIXED, axes_of(size), out=results.folder / "sweep", resume=resume, progress=True
    ).load()
    report |= {"seconds": time.perf_counter() - started[0], "processor": time.process_time() - started[1]}
    report |= {"load": os.getloadavg()[0], "members": dataset.status.size}
    report |= {"certified": int(dataset.certified.sum()), "mismatches": mismatches(dataset, size)}
    results.save(report, "report")
    results.draw(figure(dataset))
    print(summary(dataset))
    print(json.dumps(report, indent=1))
    wrong = [entry for entry in report["mismatches"] if entry["could_tell"]]
    return int(bool(wrong) or report["certified"] < report["members"])


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
