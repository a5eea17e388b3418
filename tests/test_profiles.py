"""Imbalance profiles: published totals, exact floors, the Pareto reconstruction, and the text forms."""

import contextlib
import fractions
import inspect

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ufm import profiles
from ufm.inputs.checks import InputError
from ufm.profiles import (
    FORMS,
    NAMED,
    balanced,
    counts_from,
    exponential,
    pareto,
    parse_counts,
    remark,
    step,
    zipf,
)

exact = settings(max_examples=100)

PUBLISHED = {  # name: classes, samples, largest, smallest
    "icml2024-cifar10": (10, 30_000, 5000, 1000),
    "icml2024-mnist": (10, 3000, 500, 100),
    "icml2024-cifar100": (100, 30_000, 500, 100),
    "icml2023": (4, 400, 200, 50),
    "hong-ling": (10, 3000, 500, 100),
    "cifar10-lt-10": (10, 20_431, 5000, 500),
    "cifar10-lt-50": (10, 13_996, 5000, 100),
    "cifar10-lt-100": (10, 12_406, 5000, 50),
    "cifar10-lt-200": (10, 11_203, 5000, 25),
    "cifar100-lt-10": (100, 19_573, 500, 50),
    "cifar100-lt-50": (100, 12_608, 500, 10),
    "cifar100-lt-100": (100, 10_847, 500, 5),
    "cifar100-lt-200": (100, 9_502, 500, 2),
    "cifar10-step-10": (10, 27_500, 5000, 500),
    "cifar10-step-100": (10, 25_250, 5000, 50),
    "cifar100-step-10": (100, 27_500, 500, 50),
    "cifar100-step-100": (100, 25_250, 500, 5),
    "imagenet-lt": (1000, 115_846, 1280, 5),
    "places-lt": (365, 62_500, 4980, 5),
    "inaturalist": (8142, 437_513, 1000, 2),
}


def test_every_named_profile_is_checked_against_published_numbers():
    assert set(PUBLISHED) == set(NAMED)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_profile_has_the_published_numbers(name):
    counts = parse_counts(name)
    assert (len(counts), counts.sum(), counts.max(), counts.min()) == PUBLISHED[name]
    assert counts.dtype == np.int64
    assert NAMED[name].source


def test_named_profiles_keep_the_order_of_their_source():
    assert parse_counts("icml2024-mnist").tolist() == [100, 100, 200, 200, 300, 300, 400, 400, 500, 500]
    assert parse_counts("icml2023").tolist() == [200, 100, 50, 50]


def test_reconstructed_imagenet_lt_has_about_the_published_many_medium_and_few_shot_classes():
    counts = parse_counts("imagenet-lt")
    groups = [(counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum()]
    np.testing.assert_allclose(groups, [385, 479, 136], atol=10)


@exact
@given(K=st.integers(2, 30), n_max=st.integers(1, 10**6), ratio=st.integers(1, 1000))
@example(K=3, n_max=10, ratio=4)  # 10 / sqrt(4) and its like: an integer that a power must not undercut
@example(K=4, n_max=1000, ratio=1000)
@example(K=7, n_max=729, ratio=729)
@example(K=30, n_max=7, ratio=7)
def test_exponential_floor_is_exact(K, n_max, ratio):
    if ratio > n_max:
        with pytest.raises(InputError, match="ratio"):
            exponential(K, n_max, ratio)
        return
    counts = exponential(K, n_max, ratio).tolist()
    assert counts[0] == n_max
    assert counts[-1] == n_max // ratio
    for i, n in enumerate(counts):  # n <= n_max ratio^(-i/(K-1)) < n + 1, in integers
        assert n ** (K - 1) * ratio**i <= n_max ** (K - 1) < (n + 1) ** (K - 1) * ratio**i


@exact
@given(n_max=st.integers(1, 10**12), ratio=st.floats(1, 1e6), K=st.integers(2, 20))
def test_step_minority_is_the_exact_floor(n_max, ratio, K):
    if ratio > n_max:
        return
    counts = step(K, n_max, ratio)
    low = n_max / fractions.Fraction(ratio)
    assert counts[0] == n_max
    # one sample of slack only where the quotient is an integer up to rounding
    assert counts[-1] == low.__floor__() or abs(low - counts[-1]) < 1e-15 * counts[-1]


def test_step_divides_the_classes():
    assert step(5, 60, 3).tolist() == [60, 60, 20, 20, 20]
    assert step(5, 60, 3, major=4).tolist() == [60, 60, 60, 60, 20]
    assert step(10, 60, 3, fraction=0.29).tolist() == [60] * 3 + [20] * 7
    assert step(3, 10, 3.4, major=1).tolist() == [10, 2, 2]


def test_ratio_one_is_balanced():
    same = balanced(6, 7).tolist()
    assert same == [7] * 6
    assert step(6, 7, 1).tolist() == exponential(6, 7, 1).tolist() == zipf(6, 7, 0).tolist() == same
    assert pareto(6, 42, 7, 7).tolist() == same


def test_zipf_floors_exactly_and_never_empties_a_class():
    assert zipf(6, 60).tolist() == [60, 30, 20, 15, 12, 10]
    assert zipf(4, 100, exponent=0.5)[3] == 50
    counts = zipf(5000, 100, exponent=1000)
    assert counts[0] == 100
    assert set(counts[1:].tolist()) == {1}


def test_pareto_meets_every_feasible_total():
    for K in range(2, 6):
        for N in range(9 + (K - 1) * 2, (K - 1) * 9 + 2 + 1):
            counts = pareto(K, N, 9, 2)
            assert (len(counts), counts.sum(), counts[0], counts[-1]) == (K, N, 9, 2)
            assert np.all(np.diff(counts) <= 0)


@exact
@given(st.data())
def test_pareto_meets_its_four_numbers(data):
    K, n_min = data.draw(st.integers(2, 400)), data.draw(st.integers(1, 50))
    n_max = data.draw(st.integers(n_min, 10**6))
    N = data.draw(st.integers(n_max + (K - 1) * n_min, (K - 1) * n_max + n_min))
    counts = pareto(K, N, n_max, n_min)
    assert (len(counts), counts.sum(), counts.max(), counts.min()) == (K, N, n_max, n_min)
    assert np.all(np.diff(counts) <= 0)


def test_counts_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        balanced(3, 4)[0] = 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10,20,30", [10, 20, 30]),
        ("5000x2,50x3", [5000, 5000, 50, 50, 50]),
        (" 5X2 , 7 ", [5, 5, 7]),
        ("5×2", [5, 5]),
        ("ICML2023", [200, 100, 50, 50]),
        ("balanced:K=3,n=5", [5, 5, 5]),
        ("Balanced: K = 3 , n = 5", [5, 5, 5]),
        ("step:K=4,major=1,n_max=100,ratio=10", [100, 10, 10, 10]),
        ("step:K=4,n_max=100,ratio=2.5", [100, 100, 40, 40]),
        ("step:K=4,n_max=100,ratio=4,fraction=0.75", [100, 100, 100, 25]),
        ("exp:K=3,n_max=100,ratio=1e2", [100, 10, 1]),
        ("zipf:K=3,n_max=6", [6, 3, 2]),
        ("zipf:K=2,n_max=16,exponent=2", [16, 4]),
        ("pareto:K=3,N=12,n_max=6,n_min=2", [6, 4, 2]),
    ],
)
def test_parse_counts(text, expected):
    counts = parse_counts(text)
    assert counts.tolist() == expected
    assert counts.dtype == np.int64


@exact
@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 5)), min_size=1, max_size=8))
def test_parse_counts_inverts_writing(pairs):
    expected = [n for n, times in pairs for _ in range(times)]
    text = ",".join(f"{n}x{times}" for n, times in pairs)
    if len(expected) < 2:
        with pytest.raises(InputError, match="at least two classes"):
            parse_counts(text)
    else:
        assert parse_counts(text).tolist() == expected
        assert parse_counts(",".join(map(str, expected))).tolist() == expected


BAD_TEXT = [  # text, and what the message must contain
    ("", "''"),
    ("  ", "'5000x5,50x5'"),
    (None, "None"),
    ([5, 5], r"\[5, 5\]"),
    ("5000", "at least two classes"),
    ("5000x1", "at least two classes"),
    ("10,,20", "''"),
    ("10,20,", "''"),
    (",", "''"),
    ("10,0", "'0'"),
    ("10x0,5", "'10x0'"),
    ("10,-5", "'-5'"),
    ("-10,5", "'-10'"),
    ("10.5,5", "'10.5'"),
    ("5000xx5", "'5000xx5'"),
    ("5000x5x5", "'5000x5x5'"),
    ("x5", "'x5'"),
    ("5x", "'5x'"),
    ("1e3,5", "'1e3'"),
    ("10 20", "'10 20'"),
    ("5x10000001", "at most 1000000 classes"),
    ("5x999999999999999", "at most 1000000 classes"),
    ("5x" + "9" * 5000, "positive integers below"),
    ("9" * 5000 + ",1", r"\.\.\."),
    ("999999999999999x9999", "2\\^53"),
    ("nan,5", "'nan,5'"),
    ("cifar10-lt-101", "cifar10-lt-10"),
    ("imagenet", "imagenet-lt"),
    ("quux", "'quux'"),
    ("exponential:K=3", "exp"),
    ("cifar10-lt-10:K=3", "no parameters|one of balanced"),
    (":K=3", "''"),
    ("step", "need K, n_max, ratio"),
    ("exp:K=10,n_max=5", "need ratio"),
    ("exp:K=10,n_max=5,ratio=", "'ratio='"),
    ("exp:K=10,n_max=5,ratio=ten", "'ratio=ten'"),
    ("exp:K=10,n_max=5,ratio=nan", "ratio .*nan"),
    ("exp:K=10,n_max=5,ratio=inf", "ratio .*inf"),
    ("exp:K=10,n_max=5,ratio=0.5", "ratio .*0.5"),
    ("exp:K=10,n_max=5,ratio=6", "ratio .*6"),
    ("exp:K=10,n_max=5.5,ratio=2", "'n_max=5.5'"),
    ("exp:K=10,K=10,n_max=5,ratio=2", "'K=10'"),
    ("exp:K=10,max=5,ratio=2", "'max=5'"),
    ("exp:K,n_max=5,ratio=2", "'K'"),
    ("exp:K=1,n_max=5,ratio=2", "K .*1"),
    ("exp:K=0,n_max=5,ratio=2", "K .*0"),
    ("exp:K=10000001,n_max=5,ratio=2", "K .*10000001"),
    ("exp:K=3,n_max=0,ratio=1", "n_max .*0"),
    ("balanced:K=3,n=" + "9" * 400, "n must be at most"),
    ("balanced:K=1000000,n=1000000000000", "total"),
    ("step:K=4,n_max=10,ratio=2,major=4", "major .*4"),
    ("step:K=4,n_max=10,ratio=2,major=0", "major .*0"),
    ("step:K=4,n_max=10,ratio=2,major=1,fraction=0.5", "major and fraction"),
    ("step:K=4,n_max=10,ratio=2,fraction=1", "fraction .*1"),
    ("step:K=4,n_max=10,ratio=2,fraction=1e300", "fraction .*1e"),
    ("step:K=4,n_max=10,ratio=2,fraction=0", "fraction .*0"),
    ("zipf:K=3,n_max=6,exponent=-1", "exponent .*-1"),
    ("zipf:K=3,n_max=6,exponent=inf", "exponent .*inf"),
    ("pareto:K=3,N=9,n_max=6,n_min=2", "N must be from 10 to 14 .*got 9"),
    ("pareto:K=3,N=15,n_max=6,n_min=2", "N must be from 10 to 14 .*got 15"),
    ("pareto:K=3,N=15,n_max=2,n_min=6", "n_min .*6"),
]


@pytest.mark.parametrize(("text", "told"), BAD_TEXT, ids=[str(text)[:40] for text, _ in BAD_TEXT])
def test_bad_text_is_explained_in_one_sentence(text, told):
    with pytest.raises(InputError, match=told) as caught:
        inspect.unwrap(parse_counts)(text)
    message = str(caught.value)
    assert message.startswith("counts ")
    assert "\n" not in message
    assert len(message) < 300


@exact
@given(st.text(max_size=20) | st.text("0123456789x,:=-. KNnratiomaexpstl_", max_size=30))
def test_no_text_raises_anything_but_input_error(text):
    with contextlib.suppress(InputError):
        assert parse_counts(text).min() >= 1


def test_every_form_is_documented_and_reachable():
    for form, function in FORMS.items():
        assert inspect.getdoc(function)
        with pytest.raises(InputError, match=f"'{form}'"):
            parse_counts(form)
    assert profiles.MAX_CLASSES == 10**6


@pytest.mark.parametrize("name", sorted(NAMED))
def test_reconstructions_say_so(name):
    reconstructed = name in ("imagenet-lt", "places-lt", "inaturalist")
    said = remark(name.upper() + " ")
    assert (
        said.startswith(f"Counts: {name} is reconstructed by a Pareto law") if reconstructed else said == ""
    )


def test_counts_are_taken_as_text_or_numbers():
    for counts in ("30x2,5", [30, 30, 5], {"b": 30, "c": 5, "a": 30}):
        assert counts_from(counts).tolist() == [30, 30, 5]
