"""Many cases of one test: a few every day, all of them with the slow ones."""

import pytest


def few_daily(cases, daily):
    """Return the cases as parameters; those whose numbers are not among ``daily`` are slow."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if number in daily else pytest.mark.slow
        )
        for number, case in enumerate(cases)
    ]
