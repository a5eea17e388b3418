"""``ufm sweep``: a grid of problems from a file."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ufm.cli.flags import Forget, Json
from ufm.cli.output import emit
from ufm.inputs.files import check_folder


def sweep_command(
    config: Annotated[Positional[Path], arg(help="the TOML file")],
    out: Annotated[Path, arg(help="folder for the results")],
    resume: Annotated[bool, arg(help="go on with the sweep in that folder")] = False,
    process_index: Annotated[int, arg(help="which of --process-count processes this is")] = 0,
    process_count: Annotated[int, arg(help="processes that share the sweep and the folder")] = 1,
    workers: Annotated[int | None, arg(help="start so many processes here to share it")] = None,
    scheduler: Annotated[str | None, arg(help="address of a Dask scheduler, whose workers share it")] = None,
    forget: Forget = False,
    json: Json = False,
) -> int:
    """Solve a grid of problems from a TOML file; killed at any moment, it resumes.

    Example: ufm sweep ratios.toml --out ratios, where ratios.toml holds

    problem = { counts = "exp:K=10,n_max=5000", dim = 16 }

    axes = { "counts.ratio" = [1, 10, 100], nuclear_weight = [1e-3, 2e-3] }
    """
    from ufm.model.compilation import keep_compiled_programs
    from ufm.sweeps import run_config, summary

    check_folder("out", out)
    if not forget:
        keep_compiled_programs()
    with contextlib.ExitStack() as stack:
        client = None
        if workers is not None or scheduler is not None:
            from ufm.sweeps.cluster import connected

            client = stack.enter_context(connected(workers, scheduler))
        found = run_config(
            config,
            out,
            resume=resume,
            process_index=process_index,
            process_count=process_count,
            progress=not json and sys.stderr.isatty(),
            client=client,
        )
    computed = int((found.status != "missing").sum())  # other processes may not be done yet
    certified = int(found.certified.sum())
    outcome = {
        "out": str(out),
        "members": int(found.status.size),
        "computed": computed,
        "certified": certified,
    }
    emit(outcome, json, f"{summary(found)}\nResults in {out}")
    return 0 if certified == computed else 1
