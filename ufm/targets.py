"""Where soft targets come from: label noise, several labels at once, mixed inputs, next tokens.

Each returns `Contexts`, counts and targets for a problem: ``ufm.Problem(contexts.counts,
..., targets=contexts.targets)``. Contexts with equal targets are one: by Jensen's inequality their samples share the
best feature.
"""

import operator
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.arrays import real_array
from ufm.inputs.checks import (
    LARGEST,
    InputError,
    class_counts,
    dense,
    finite_vector,
    fits_memory,
    nonnegative_float,
    one_of,
    positive_float,
    positive_integer,
    target_rows,
    to_numpy,
)
from ufm.inputs.files import open_archive, path_of

#: Kinds of label noise.
KINDS = ("symmetric", "pair")
#: Largest parameter of a Beta distribution whose quadrature rule can be computed.
MAX_ALPHA = 1e3


class Contexts(NamedTuple):
    """Sets of samples that share a target.

    Attributes:
        counts: (C,), samples of every context; real where they are shares of samples.
        targets: (C, K), rows are distributions.
        of: context of every row that was given, -1 for one without samples.
    """

    counts: Int[np.ndarray, " C"] | Float[np.ndarray, " C"]
    targets: Float[np.ndarray, "C K"]
    of: Int[np.ndarray, " given"]


def _check_table(contexts: int, columns: int) -> None:
    """Raise `InputError` before a table is made that would not fit into memory."""
    fits_memory(f"{contexts:,} contexts", contexts * columns, "take fewer classes")


def merged(counts: Any, targets: Any) -> Contexts:
    """Return contexts with equal targets as one, in the order of their first, those without samples left out.

    Args:
        counts: samples of every row, at least 0.
        targets: (rows, K), distributions.

    Example:
        >>> merged([3, 2, 1], [[1, 0], [0.5, 0.5], [1, 0]]).counts.tolist()
        [4, 2]
    """
    sizes, rows = to_numpy("counts", counts), real_array("targets", targets, 2).astype(np.float64, copy=False)
    if sizes.shape != (len(rows),) or sizes.dtype.kind not in "iuf" or not np.all(sizes >= 0):
        raise InputError(
            f"counts must be one number of at least 0 per row of targets ({len(rows)}), "
            f"got {sizes.dtype} of shape {sizes.shape}"
        )
    seen = np.flatnonzero(sizes > 0)
    first, inverse = equal_rows(rows[seen])
    of = np.full(len(sizes), -1)
    of[seen] = inverse
    totals = np.zeros(len(first), sizes.dtype)
    np.add.at(totals, inverse, sizes[seen])
    return Contexts(class_counts(totals), rows[seen[first]], of)


def equal_rows(
    rows: Float[np.ndarray, "rows any"],
) -> tuple[Int[np.ndarray, " few"], Int[np.ndarray, " rows"]]:
    """Return the first of every set of equal rows, in their order, and for every row the number of its set.

    Example:
        >>> [part.tolist() for part in equal_rows(np.array([[1.0], [0.0], [1.0]]))]
        [[0, 1], [0, 1, 0]]
    """
    numbers: dict[bytes, int] = {}
    keys = (row.tobytes() for row in np.ascontiguousarray(rows) + 0.0)  # zero has one sign
    of = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    return np.unique(of, return_index=True)[1], of


def noisy(counts: Any, flip: float | int, kind: str = "symmetric") -> Contexts:
    """Return classes whose labels are wrong with probability ``flip``: row k is the law of its label.

    Args:
        counts: samples per class ``n_k``.
        flip: probability of a wrong label, in [0, 1).
        kind: ``"symmetric"``: any other class, all alike (label smoothing with ``e = flip K/(K-1)``); ``"pair"``: the
            next class.

    Example:
        >>> noisy([50, 20, 5], 0.2).targets[0].tolist()
        [0.8, 0.1, 0.1]
    """
    sizes, K = class_counts(counts), len(class_counts(counts))
    flip = nonnegative_float("flip", flip)
    if flip >= 1:
        raise InputError(f"flip must be a probability from 0 to below 1, got {flip!r}")
    _check_table(K, K)
    eye = np.eye(K)
    wrong = (1 - eye) / (K - 1) if one_of("kind", kind, KINDS) == "symmetric" else np.roll(eye, 1, axis=1)
    return Contexts(sizes, (1 - flip) * eye + flip * wrong, np.arange(K))


def multilabel(patterns: Iterable[Any], counts: Any, num_labels: int | None = None) -> Contexts:
    """Return sets of labels picked together: the target of a set is uniform over its labels.

    The loss of a sample is the *mean* of the cross-entropies of its labels. For their sum (pick-all-label; Li et al.,
    2023) multiply the counts by the sizes of the sets and divide ``feature_decay`` by them.

    Args:
        patterns: one collection of labels from 0 per set, none empty.
        counts: samples of every set.
        num_labels: ``K``; one more than the largest label if omitted.

    Example:
        >>> multilabel([(0,), (1,), (0, 1)], [30, 20, 5]).targets.tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    """
    try:
        sets = [sorted({operator.index(label) for label in pattern}) for pattern in patterns]
    except TypeError:
        raise InputError(f"patterns must be collections of integers, got {reprlib.repr(patterns)}") from None
    sizes = class_counts(counts)
    if len(sets) != len(sizes) or not all(sets):
        raise InputError(
            f"patterns must be one non-empty set of labels per count ({len(sizes)}), got {len(sets)}"
        )
    largest = max(max(each) for each in sets)
    K = largest + 1 if num_labels is None else positive_integer("num_labels", num_labels)
    smallest = min(min(each) for each in sets)
    if smallest < 0 or largest >= K:
        got = smallest if smallest < 0 else largest
        raise InputError(f"patterns must hold labels from 0 to {K - 1}, got {got}")
    _check_table(len(sets), K)
    targets = np.zeros((len(sets), K))
    for row, each in zip(targets, sets, strict=True):
        row[each] = 1 / len(each)
    return merged(sizes, targets)


def mixup(counts: Any, alpha: float | int, points: int = 4) -> Contexts:
    """Return pairs of classes mixed in shares drawn from Beta(alpha, alpha), every mixture with a feature of its own.

    Pairs are drawn with probability ``n_k n_l / N^2``; the law of the shares becomes a Gauss-Jacobi rule,
    exact for polynomials of degree ``2 points - 1``.

    Args:
        counts: samples per class ``n_k``.
        alpha: of the Beta distribution, above 0.
        points: shares per pair of classes, m: ``K + m K (K-1)/2`` contexts.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018 (arXiv:1710.09412).

    Example:
        >>> mixed = mixup([30, 10], alpha=1.0, points=2)
        >>> mixed.targets.round(3).tolist(), mixed.counts.tolist()
        ([[1.0, 0.0], [0.211, 0.789], [0.789, 0.211], [0.0, 1.0]], [22.5, 7.5, 7.5, 2.5])
    """
    from scipy.special import roots_jacobi  # takes a while to import

    sizes, K = class_counts(counts).astype(np.float64), len(class_counts(counts))
    shape = positive_float("alpha", alpha) - 1
    if shape > MAX_ALPHA:
        raise InputError(f"alpha must be at most {MAX_ALPHA:g}, got {alpha}")
    points = positive_integer("points", points, most=64)
    _check_table(K + points * K * (K - 1) // 2, 4 * K)
    nodes, masses = roots_jacobi(points, shape, shape)
    shares, masses = (1 + (nodes - nodes[::-1]) / 2) / 2, (masses + masses[::-1]) / (2 * masses.sum())
    eye = np.eye(K)
    rows: list[np.ndarray] = []
    weights: list[float] = []
    for k in range(K):
        for other in range(k, K):
            pair = sizes[k] * sizes[other] / sizes.sum()
            if k == other:
                rows.append(eye[k])
                weights.append(pair)
            else:  # either order: shares and one minus shares have the same law
                rows += [share * eye[k] + (1 - share) * eye[other] for share in shares]
                weights += (2 * pair * masses).tolist()
    return merged(np.array(weights), np.array(rows))


def next_token(pairs: Any) -> Contexts:
    """Return contexts and the distributions of their next tokens from a table of how often each pair occurs.

    Args:
        pairs: (contexts, tokens), counts of pairs, dense or SciPy sparse; contexts that never occur are left out, and
            those with the same distribution become one.

    Source: Thrampoulidis, "Implicit optimization bias of next-token prediction in linear models", NeurIPS 2024.

    Example:
        >>> next_token([[2, 2, 0], [0, 0, 3], [1, 1, 0], [0, 0, 0]])[::2]
        (array([6, 3]), array([ 0,  1,  0, -1]))
    """
    table = to_numpy("pairs", dense("pairs", pairs))
    table = table.astype(np.float64) if table.dtype.kind == "f" else table
    good = table.ndim == 2 and table.shape[1] >= 2 and table.dtype.kind in "biuf"
    if not good or not np.all((table >= 0) & (table <= LARGEST)):  # false for NaN
        raise InputError(
            f"pairs must be a table of numbers from 0 with at least two columns, got shape {table.shape}"
        )
    sums = table.sum(axis=1)
    return merged(sums, table / np.where(sums > 0, sums, 1)[:, None])


def bigrams(tokens: Any) -> tuple[Int[np.ndarray, "tokens tokens"], list[Any]]:
    """Return how often each token follows each, and the tokens, the most frequent first.

    Example:
        >>> table, names = bigrams("a b a c a b".split())
        >>> names, table.tolist()
        (['a', 'b', 'c'], [[0, 2, 1], [1, 0, 0], [1, 0, 0]])
    """
    array = to_numpy("tokens", tokens)
    if array.ndim != 1 or array.dtype.kind not in "iufUSO" or len({type(token) for token in array}) > 1:
        raise InputError(
            f"tokens must be a sequence of texts or numbers, got {array.dtype} of shape {array.shape}"
        )
    names, codes, sizes = np.unique(array, return_inverse=True, return_counts=True)
    _check_table(len(names), len(names))
    order = np.argsort(-sizes, kind="stable")
    ranks = np.argsort(order)[codes]
    table = np.zeros((len(names), len(names)), np.int64)
    np.add.at(table, (ranks[:-1], ranks[1:]), 1)
    return table, names[order].tolist()


def read_targets(text: str, counts: Any) -> Contexts:
    """Return the contexts that text names, or those of an npz file: ``targets``, and ``counts`` if they are there.

    Args:
        text: as for `parse_targets`, or a path that ends in ``.npz``, also one that `scipy.sparse.save_npz` wrote.
        counts: samples of every class, or of every context of a file that does not say.

    Raises:
        InputError: naming ``targets``, the value and what is required.
    """
    if not text.endswith(".npz"):
        return parse_targets(text, counts)
    try:
        with open_archive(path_of("targets", text)) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if "format" in arrays:
            from scipy import sparse

            arrays["targets"] = sparse.load_npz(text)
        targets = arrays["targets"]
    except MemoryError:
        raise
    except Exception as error:  # zip, header, compression, type: everything that a file can be wrong in
        raise InputError(
            f"targets must be an npz file with an array called targets, got {text} ({error})"
        ) from None
    sizes = class_counts(arrays.get("counts", counts))
    return Contexts(sizes, target_rows(targets, len(sizes)), np.arange(len(sizes)))


#: Targets by name, for command line and sweeps: name -> (meaning, contexts from counts and the number).
TARGET_FORMS: dict[str, tuple[str, Callable[[Any, float], Contexts]]] = {
    "noise": ("labels wrong with this probability, any other class", lambda n, flip: noisy(n, flip)),
    "pair": ("labels wrong with this probability, the next class", lambda n, flip: noisy(n, flip, "pair")),
    "mixup": ("inputs mixed in shares from Beta(a, a)", lambda n, alpha: mixup(n, alpha)),
}


def parse_targets(text: str, counts: Any) -> Contexts:
    """Return the contexts that text such as ``noise:0.2`` names, from class counts.

    Raises:
        InputError: naming ``targets``, the value and what is required.

    Example:
        >>> parse_targets("pair:0.1", [5, 3]).targets.tolist()
        [[0.9, 0.1], [0.1, 0.9]]
    """
    name, _, number = text.strip().lower().partition(":")
    try:
        if name not in TARGET_FORMS:
            raise ValueError
        value = float(number)
    except ValueError:
        raise InputError(
            f"targets must be one of {', '.join(TARGET_FORMS)} with a number, as in noise:0.2; got {text!r}"
        ) from None
    return TARGET_FORMS[name][1](finite_vector("counts", counts, positive=True), value)
