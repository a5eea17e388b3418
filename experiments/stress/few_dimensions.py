"""What is known where dim < K: the best of some starts over dimensions, and spheres packed by vanishing decays.

With fewer dimensions than classes the bound is rigorous but need not be attained, and starts end at different points.
The first table holds, for each dimension, the best objective of some starts, its distance to the certified optimum of
d = K (what dimensions cost at most) and to its own bound, and how many starts reached the best to 1e-6. The second:
with free features, equal counts and vanishing decays the rows of the classifier repel each other like points of an
optimal spherical code; the largest cosine between two of them against the known optimum.

    python -m experiments.stress.few_dimensions [--starts 20] [--quick]
"""

from __future__ import annotations

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs

COUNTS, DECAYS = [500] * 5 + [50] * 5, (5e-3, 1e-5)
#: (d, K) -> largest cosine of the optimal spherical code (icosahedron, 28 equiangular lines, roots of E8).
CODES = {(3, 12): 5**-0.5, (7, 56): 1 / 3, (8, 240): 0.5}
#: Decays, each point the start of the next: margins grow like the logarithm of their inverse.
VANISHING = (1e-3, 1e-5, 1e-7, 1e-9)


def over_dimensions(starts: int, dims: range) -> list[dict[str, float | str]]:
    """Return a record for every feature set and dimension below K."""
    found = []
    for features in ("nonnegative", "free"):
        whole = ufm.solve(ufm.Problem(COUNTS, len(COUNTS), *DECAYS, features=features)).objective
        for dim in dims:
            problem = ufm.Problem(COUNTS, dim, *DECAYS, features=features)
            ends = [ufm.solve(problem, seed=seed, max_steps=20_000) for seed in range(starts)]
            best = min(ends, key=lambda end: end.objective)
            record = {
                "features": features,
                "dim": dim,
                "objective": best.objective,
                "above_whole": best.objective / whole - 1,
                "gap": best.certificate.relative_gap,
                "residual": best.certificate.residual,
                "reached": sum(end.objective <= best.objective * (1 + 1e-6) for end in ends) / starts,
            }
            print(
                f"{features:12}{dim:3}{record['objective']:16.10f}{record['above_whole']:10.1e}"
                f"{record['gap']:10.1e}{record['residual']:10.1e}{record['reached']:8.0%}",
                flush=True,
            )
            found.append(record)
    return found


def largest_cosine(dim: int, num_classes: int, seed: int) -> float:
    """Return the largest cosine between two classifier rows where decays vanish, from one start."""
    point: ufm.Solution | None = None
    for decay in VANISHING:
        problem = ufm.Problem([1] * num_classes, dim, decay, decay, features="free")
        point = ufm.solve(problem, "class", seed=seed, start=point, max_steps=5000, tol=1e-6)
    assert point is not None
    rows = point.weight / np.linalg.norm(point.weight, axis=1, keepdims=True)
    return float(np.max((rows @ rows.T)[~np.eye(num_classes, dtype=bool)]))


def main(starts: int = 20, quick: bool = False, outputs: OmitArgPrefixes[Outputs] = Outputs()) -> None:
    """Print both tables and write their records.

    Args:
        starts: random starts for each dimension, and a quarter of them for each code.
        quick: 3 starts, two dimensions, the smallest code.
        outputs: where the records go; there is no picture.
    """
    starts, dims = (3, range(2, 4)) if quick else (starts, range(2, len(COUNTS)))
    print("features      d       objective  over d=K       gap  residual  reached", flush=True)
    tables = over_dimensions(starts, dims)
    codes = []
    for (dim, num_classes), known in list(CODES.items())[: 1 if quick else None]:
        cosines = [largest_cosine(dim, num_classes, seed) for seed in range(max(1, starts // 4))]
        print(f"code ({dim}, {num_classes}): cosine {min(cosines):.6f}, known {known:.6f}", flush=True)
        codes.append({"dim": dim, "K": num_classes, "cosine": min(cosines), "all": cosines, "known": known})
    outputs.of("few_dimensions", quick).save({"dimensions": tables, "codes": codes})


if __name__ == "__main__":
    tyro.cli(main)
