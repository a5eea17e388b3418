"""Imbalance profiles: how many samples every class has.

Every profile returns the class counts as a read-only int64 vector, largest first; the published ones are in
the order of their source. All raise `InputError` naming the argument that is out of range or would leave a
class empty. `parse_counts` reads them all from text, for the command line and sweep files.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from ufm.inputs.checks import (
    InputError,
    class_counts,
    nonnegative_float,
    positive_float,
    positive_integer,
)
from ufm.inputs.counts_file import read_counts

#: Most classes that a profile may have: advice on so many takes seconds and 1.3 GB. No limit of the mathematics.
MAX_CLASSES = 10**6

#: Most samples of a parametric profile: beyond, the rounding errors of a law could exceed one sample.
MAX_SAMPLES = 10**12


def balanced(K: int, n: int) -> Int[np.ndarray, " K"]:
    """Return K classes of n samples each."""
    return class_counts(np.full(_classes(K), _samples("n", n)))


def step(
    K: int, n_max: int, ratio: float | int, major: int | None = None, fraction: float | None = None
) -> Int[np.ndarray, " K"]:
    """Return a two-level profile: majority classes of ``n_max`` samples, others of ``floor(n_max / ratio)``.

    Args:
        K: number of classes.
        n_max: samples of a majority class.
        ratio: imbalance ratio ``R >= 1``.
        major: number of majority classes, 1 to K - 1.
        fraction: or their fraction of K, rounded; ``floor(K/2)`` majority classes if neither is given.

    Source: Cao et al., NeurIPS 2019 (step imbalance); Thrampoulidis et al., NeurIPS 2022 ((R, rho)-STEP).
    """
    K, n_max, ratio = _classes(K), _samples("n_max", n_max), _imbalance_ratio(ratio, n_max)
    if major is not None and fraction is not None:
        raise InputError(f"major and fraction exclude each other, got {major!r} and {fraction!r}")
    if fraction is not None:
        majority = round(min(positive_float("fraction", fraction), 1.0) * K)
    else:
        majority = K // 2 if major is None else positive_integer("major", major)
    if not 0 < majority < K:
        name, value = ("major", major) if fraction is None else ("fraction", fraction)
        raise InputError(f"{name} must leave at least one class of {K} on either side, got {value!r}")
    ratios = np.repeat([1.0, ratio], [majority, K - majority])
    return class_counts(_floor(n_max / ratios, ulps=2.0))


def exponential(K: int, n_max: int, ratio: float | int) -> Int[np.ndarray, " K"]:
    """Return the long tail ``n_i = floor(n_max ratio^(-i / (K-1)))``, i = 0..K-1; ratio is n_max/n_min.

    Source: Cui et al., CVPR 2019; Cao et al., NeurIPS 2019 (CIFAR-10-LT and CIFAR-100-LT).

    Example:
        >>> exponential(10, 5000, 100).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    K, n_max, ratio = _classes(K), _samples("n_max", n_max), _imbalance_ratio(ratio, n_max)
    exponents = np.arange(K) / (K - 1)
    # the rounding error of an exponent is amplified by log(ratio)
    return class_counts(_floor(n_max / ratio**exponents, ulps=4.0 + math.log(ratio)))


def zipf(K: int, n_max: int, exponent: float | int = 1.0) -> Int[np.ndarray, " K"]:
    """Return Zipf's law ``n_k = max(1, floor(n_max / k^exponent))``, k = 1..K, the word-frequency profile."""
    K, n_max, exponent = _classes(K), _samples("n_max", n_max), nonnegative_float("exponent", exponent)
    with np.errstate(over="ignore"):  # an infinite power is an empty class, which becomes one sample
        ranks = np.arange(1.0, K + 1) ** exponent
    return class_counts(np.maximum(1.0, _floor(n_max / ranks, ulps=4.0)))


def pareto(K: int, N: int, n_max: int, n_min: int) -> Int[np.ndarray, " K"]:
    """Return a Pareto rank law with exactly K classes, N samples and this largest and smallest class.

    ``n_k = n_min + (n_max - n_min) ((K/k)^xi - 1) / (K^xi - 1)``, k = 1..K, are quantiles of a shifted Pareto
    distribution with tail exponent ``1/xi``. xi is solved for N, counts are rounded down, and samples then
    missing go to the classes with the largest remainders. Data sets known only by these four numbers are
    reconstructed so: of the many (> 100), medium and few (< 20) shot classes of ImageNet-LT, published as
    385, 479 and 136, it makes 383, 471 and 146.
    """
    K, N, n_max, n_min = _classes(K), _samples("N", N), _samples("n_max", n_max), _samples("n_min", n_min)
    if n_min > n_max:
        raise InputError(f"n_min must be at most n_max = {n_max}, got {n_min}")
    fewest, most = n_max + (K - 1) * n_min, (K - 1) * n_max + n_min
    most = min(most, MAX_SAMPLES)
    if not fewest <= N <= most:
        raise InputError(f"N must be from {fewest} to {most} for this K, n_max and n_min, got {N}")
    from scipy.optimize import brentq  # takes a while to import, and only these profiles need it

    def surplus(xi: float) -> float:
        return float(n_min * K + (n_max - n_min) * _pareto_shape(K, xi).sum() - N)

    ends = (-64.0 * K, 64.0)  # (almost) all classes at n_max, at n_min
    inside = surplus(ends[0]) > 0 > surplus(ends[1])
    xi = brentq(surplus, *ends, xtol=1e-14) if inside else min(ends, key=lambda end: abs(surplus(end)))
    sizes = n_min + (n_max - n_min) * _pareto_shape(K, xi)
    sizes[0], sizes[-1] = n_max, n_min
    counts = np.floor(sizes).astype(np.int64)
    missing = N - int(counts.sum())
    largest = np.argsort(counts[1:-1] - sizes[1:-1], kind="stable")[:missing] + 1
    counts[largest] += 1
    return class_counts(counts)


def _pareto_shape(K: int, xi: float) -> Float[np.ndarray, " K"]:
    """``((K/k)^xi - 1) / (K^xi - 1)``, falling from 1 to 0, for xi of any sign and size."""
    logs = np.log(K / np.arange(1, K + 1))
    if xi == 0:
        return logs / logs[0]
    if xi < 0:
        return np.expm1(xi * logs) / np.expm1(xi * logs[0])
    return np.exp(xi * (logs - logs[0])) * np.expm1(-xi * logs) / np.expm1(-xi * logs[0])


def _floor(sizes: np.ndarray, ulps: float) -> np.ndarray:
    """Round down, but leave alone what is an integer up to ``ulps`` rounding errors."""
    return np.floor(sizes * (1 + ulps * np.finfo(np.float64).eps))


def _classes(K: Any) -> int:
    K = positive_integer("K", K)
    if not 2 <= K <= MAX_CLASSES:
        raise InputError(f"K must be from 2 to {MAX_CLASSES} classes, got {reprlib.repr(K)}")
    return K


def _samples(name: str, value: Any) -> int:
    value = positive_integer(name, value)
    if value > MAX_SAMPLES:
        raise InputError(f"{name} must be at most {MAX_SAMPLES}, got {reprlib.repr(value)}")
    return value


def _imbalance_ratio(ratio: Any, n_max: int) -> float:
    ratio = positive_float("ratio", ratio)
    if not 1 <= ratio <= n_max:
        raise InputError(f"ratio must be from 1 to n_max = {n_max} (no class may be empty), got {ratio:g}")
    return ratio


@dataclasses.dataclass(frozen=True)
class NamedProfile:
    """A published profile: how to build its counts, and where they come from."""

    build: Callable[[], Int[np.ndarray, " K"]]
    source: str


def _levels(source: str, *pairs: tuple[int, int]) -> NamedProfile:
    counts, repeats = zip(*pairs, strict=True)
    return NamedProfile(lambda: class_counts(np.repeat(counts, repeats)), source)


def _dang(unit: int, repeat: int, data: str) -> NamedProfile:
    source = f"Dang, Tran, Nguyen, Ho, ICML 2024 (arXiv:2401.02058), {data}"
    return _levels(source, *((unit * level, repeat) for level in range(1, 6)))


def _cao(rule: Callable[..., np.ndarray], K: int, n_max: int, ratio: int) -> NamedProfile:
    return NamedProfile(lambda: rule(K, n_max, ratio), f"Cao et al., NeurIPS 2019, imbalance factor {ratio}")


def _reconstruction(source: str, **numbers: int) -> NamedProfile:
    source = f"reconstructed by a Pareto law from K, N, the largest and the smallest class in {source}"
    return NamedProfile(lambda: pareto(**numbers), source)


#: Published profiles by name. Those "reconstructed" are not the published lists (see `pareto`).
NAMED: dict[str, NamedProfile] = {
    "icml2024-cifar10": _dang(1000, 2, "CIFAR-10"),
    "icml2024-mnist": _dang(100, 2, "MNIST, FashionMNIST and SVHN"),
    "icml2024-cifar100": _dang(100, 20, "CIFAR-100"),
    "icml2023": _levels("Dang et al., ICML 2023 (arXiv:2301.00437)", (200, 1), (100, 1), (50, 2)),
    "hong-ling": _levels("Hong and Ling, 2023 (arXiv:2309.09725)", (500, 5), (100, 5)),
    **{f"cifar10-lt-{ratio}": _cao(exponential, 10, 5000, ratio) for ratio in (10, 50, 100, 200)},
    **{f"cifar100-lt-{ratio}": _cao(exponential, 100, 500, ratio) for ratio in (10, 50, 100, 200)},
    **{f"cifar10-step-{ratio}": _cao(step, 10, 5000, ratio) for ratio in (10, 100)},
    **{f"cifar100-step-{ratio}": _cao(step, 100, 500, ratio) for ratio in (10, 100)},
    "imagenet-lt": _reconstruction("Liu et al., CVPR 2019", K=1000, N=115_846, n_max=1280, n_min=5),
    "places-lt": _reconstruction("Liu et al., CVPR 2019", K=365, N=62_500, n_max=4980, n_min=5),
    "inaturalist": _reconstruction("iNaturalist 2018", K=8142, N=437_513, n_max=1000, n_min=2),
}

#: Parametric profiles by name; the parameters are the arguments of the function.
FORMS: dict[str, Callable[..., np.ndarray]] = {
    "balanced": balanced,
    "step": step,
    "exp": exponential,
    "zipf": zipf,
    "pareto": pareto,
}


def counts_from(counts: Any) -> Num[np.ndarray, " K"]:
    """Return class counts given as text (see `parse_counts`), numbers, or a mapping from labels to numbers.

    Example:
        >>> counts_from("5000x2,50").tolist(), counts_from({"cat": 5, "ant": 9}).tolist()
        ([5000, 5000, 50], [9, 5])
    """
    return parse_counts(counts) if isinstance(counts, str) else class_counts(counts)


def remark(text: str) -> str:
    """Return a sentence about counts that are not what their name may seem to say, or nothing.

    Example:
        >>> remark("cifar10-lt-100"), remark("places-lt")[:42]
        ('', 'Counts: places-lt is reconstructed by a Pa')
    """
    name = text.strip().lower()
    if name not in NAMED or not NAMED[name].source.startswith("reconstructed"):
        return ""
    return f"Counts: {name} is {NAMED[name].source}; a published list is read from its file, --counts FILE."


def parse_counts(text: str) -> Num[np.ndarray, " K"]:
    """Return the class counts that ``text`` describes.

    Text is a list of counts, each optionally repeated (``"10,20,30"``, ``"5000x5,50x5"``), a name in `NAMED`
    (``"cifar10-lt-100"``), a name in `FORMS` with its parameters (``"exp:K=10,n_max=5000,ratio=100"``), or a file
    that holds them (`ufm.inputs.counts_file.read_counts`), with or without ``@`` in front.

    Raises:
        InputError: if it is none of these, naming ``counts``, the offending part and what is required.

    Example:
        >>> parse_counts("5000x2,50x2").tolist()
        [5000, 5000, 50, 50]
        >>> parse_counts("step:K=4,major=1,n_max=100,ratio=10").tolist()
        [100, 10, 10, 10]
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"counts must be text such as '5000x5,50x5' or 'cifar10-lt-100', got {text!r}")
    text = text.strip().replace("\n", ",")
    if text.startswith("@") or _is_file(text):
        return class_counts(read_counts(Path(text.removeprefix("@"))))
    name, colon, _ = (part.strip() for part in text.lower().partition(":"))
    if colon or name in FORMS:
        return _from_form(name, text.partition(":")[2].strip())
    if name in NAMED:
        return NAMED[name].build()
    if re.match(r"[-+.,\d]", text):
        return _from_list(text)
    raise InputError(
        f"counts {_quote(name)} is no known profile: it must be a list such as '5000x5,50x5', a name"
        f"{_nearest(name, [*NAMED, *FORMS])}, parameters such as 'exp:K=10,n_max=5000,ratio=100', or a file"
    )


def _is_file(text: str) -> bool:
    try:
        return len(text) < 4096 and (
            Path(text).suffix.lower() in (".csv", ".json", ".txt", ".tsv")
            or ("/" in text and Path(text).is_file())
        )
    except (OSError, ValueError):
        return False


def _from_list(text: str) -> np.ndarray:
    counts, repeats = [], []
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,15})(?:\s*[xX×]\s*([0-9]{1,15}))?\s*", item)
        if match is None or int(match[1]) < 1 or int(match[2] or 1) < 1:
            raise InputError(
                f"counts must be positive integers below 10^15, or COUNTxREPEAT as in '5000x5,50x5', "
                f"got {_quote(item.strip())}"
            )
        counts.append(int(match[1]))
        repeats.append(int(match[2] or 1))
    if sum(repeats) > MAX_CLASSES:
        raise InputError(f"counts must name at most {MAX_CLASSES} classes, got {_quote(text)}")
    return class_counts(np.repeat(np.array(counts), repeats))


def _from_form(form: str, text: str) -> np.ndarray:
    if form not in FORMS:
        raise InputError(
            f"counts {_quote(form)} takes no parameters: the form must be one of {', '.join(FORMS)}"
            f"{_nearest(form, list(FORMS))}"
        )
    parameters = inspect.signature(FORMS[form]).parameters
    given: dict[str, float | int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or name not in parameters or name in given:
            raise InputError(
                f"counts of form {form!r} take {', '.join(parameters)}, each at most once as NAME=NUMBER; "
                f"got {_quote(item)}"
            )
        given[name] = _number(name, value, whole="int" in str(parameters[name].annotation).split(" | ")[0])
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing:
        raise InputError(f"counts of form {form!r} need {', '.join(missing)}, got {_quote(f'{form}:{text}')}")
    try:
        return FORMS[form](**given)
    except InputError as error:
        raise InputError(f"counts of form {form!r}: {error}") from None


def _number(name: str, text: str, whole: bool) -> float | int:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "an integer" if whole else "a number"
        raise InputError(f"counts must give {name} as {kind}, got {_quote(f'{name}={text}')}") from None


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (nearest: {', '.join(close)})" if close else ""
