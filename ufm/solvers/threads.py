"""Small products of NumPy stay on one thread: where others keep the cores busy, threads wait for each other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

from ufm.model.groups import groups_of
from ufm.model.problem import Level, Problem

#: With at most so many classes, or groups of them, the host's products are too small for several threads.
SMALL_PRODUCTS = 400


@contextlib.contextmanager
def few_threads(problem: Problem, level: Level) -> Iterator[None]:
    """Solve a problem with one thread per product, if products are small; then there are as many as before.

    The number of threads belongs to the whole process; of solves that run at the same time in threads of their own
    the first one sets it.
    """
    size = len(groups_of(problem)) if level == "group" else max(problem.num_classes, problem.num_logits)
    if size > SMALL_PRODUCTS:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
