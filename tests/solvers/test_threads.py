"""The number of threads of NumPy's products is limited while a small problem is solved, and as before afterwards."""

import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import ufm
from ufm.solvers.threads import few_threads

SMALL, LARGE = ufm.Problem([50, 20], 4, 1e-2, 1e-3), ufm.Problem(np.arange(1, 502), 4, 1e-2, 1e-3)


def threads():
    found = {
        library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers
    }
    return max(found)


@pytest.fixture(autouse=True)
def two_threads():
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        yield


def test_small_products_have_one_thread_and_large_ones_theirs():
    with few_threads(SMALL, "class"):
        assert threads() == 1
        with few_threads(SMALL, "sample"):
            assert threads() == 1
        assert threads() == 1
    assert threads() == 2
    with few_threads(LARGE, "class"):
        assert threads() == 2
    with few_threads(ufm.Problem([9, 1] * 300, 600, 1e-3, 1e-3), "group"):
        assert threads() == 1


def test_the_limit_ends_when_solves_overlap_in_time():
    inside, may_end = threading.Event(), threading.Event()

    def other():
        with few_threads(SMALL, "class"):
            inside.set()
            may_end.wait(60)

    worker = threading.Thread(target=other)
    with few_threads(SMALL, "class"):
        worker.start()
        assert inside.wait(60)
    may_end.set()
    worker.join()
    assert threads() == 2


def test_a_failure_gives_them_back():
    with pytest.raises(RuntimeError, match="stopped"):
        ufm.solve(SMALL, progress=stop)
    assert threads() == 2


def stop(record):
    raise RuntimeError("stopped")
