"""What the docstrings state as accuracy, against the formulas of the papers in sixty digits."""

import mpmath as mp
import numpy as np
import pytest

import ufm
from ufm import theory

#: Relative error that derived quantities stay below.
ACCURACY = 1e-13


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60):
        yield


def numbers(values):
    return [mp.mpf(float(value)) for value in values]


def norm(entries):
    return mp.sqrt(sum(abs(entry) ** 2 for entry in entries))


def agree(found, exact, accuracy=ACCURACY):
    found, exact = numbers(np.atleast_1d(found)), list(exact) if np.ndim(found) else [exact]
    assert all(abs(a - b) <= accuracy * abs(b) for a, b in zip(found, exact, strict=True))


def agree_in_norm(matrix, exact, accuracy=ACCURACY):
    """Compare matrices of Frobenius norm 1, the second up to scale."""
    assert norm(mp.matrix(matrix.tolist()) - exact / norm(exact)) <= accuracy


def random_counts(seed, most=9):
    rng = np.random.default_rng(seed)
    return np.floor(10 ** rng.uniform(0, most, int(rng.integers(2, 9)))).astype(int)


def losses(K, rng):
    """A loss, its weights in the class losses, and the class loss as a function of the margin."""
    weights, e, c = 10 ** rng.uniform(-3, 3, K), float(rng.uniform(0, 0.9)), float(rng.uniform(0, 1))
    ones = np.ones(K)

    def entropy(margin):
        return mp.log(1 + (K - 1) * mp.exp(-margin))

    def smoothed(margin):
        return entropy(margin) + mp.mpf(e) * (K - 1) / K * margin

    def poly(margin):
        return entropy(margin) + mp.mpf(c) * (1 - mp.exp(-entropy(margin)))

    yield ufm.WeightedCrossEntropy(weights), weights, entropy
    yield ufm.LabelSmoothing(e), ones, smoothed
    yield ufm.Poly1(c), ones, poly
    yield ufm.MSE(), ones, lambda margin: (1 - margin) ** 2 / 2


def margin_of_slope(value, slope, near):
    return mp.findroot(lambda margin: mp.diff(value, margin) - slope, near, tol=1e-50)


@pytest.mark.parametrize("seed", range(25))
def test_margins_objective_and_thresholds_of_nonnegative_features(seed):
    rng, n = np.random.default_rng(seed), random_counts(seed)
    K, N = len(n), mp.mpf(int(n.sum()))
    product, decay = (
        rng.choice(n) / float(n.sum()) ** 2 * 10 ** rng.uniform(-6, 0.5),
        10 ** rng.uniform(-9, -1),
    )
    for loss, weights, value in losses(K, rng):
        problem = ufm.Problem(n, K, decay, product / decay, loss=loss)
        frame = mp.sqrt(mp.mpf(1) if isinstance(loss, ufm.MSE) else mp.mpf(K - 1) / K)
        nuclear = mp.sqrt(mp.mpf(problem.weight_decay) * mp.mpf(problem.feature_decay))
        slope = mp.diff(value, 0)
        roots = [frame / (-weight * slope) for weight in numbers(weights)]
        agree(theory.collapse_counts(problem), [(N * nuclear * root) ** 2 for root in roots])
        thresholds = [mp.sqrt(int(count)) / (N * root) for count, root in zip(n, roots, strict=True)]
        agree(theory.collapse_nuclear_weights(problem), thresholds)
        agree(theory.largest_nuclear_weight(problem), min(thresholds))
        agree(theory.largest_decay_product(problem), min(thresholds) ** 2)

        prediction, objective = ufm.predict(problem), mp.mpf(0)
        for k, threshold in enumerate(thresholds):
            found, exact = mp.mpf(float(prediction.margins[k])), mp.mpf(0)
            if nuclear < threshold:
                exact = margin_of_slope(value, nuclear / threshold * slope, found)
            assert abs(found - exact) <= ACCURACY * (1 + exact)
            weight = mp.mpf(float(weights[k]))
            objective += int(n[k]) / N * weight * value(exact) + frame * nuclear * mp.sqrt(int(n[k])) * exact
        agree(prediction.objective, objective)


@pytest.mark.parametrize("charge", [0, 1, 0.37])
@pytest.mark.parametrize("fixed", ["minority", "majority", "total"])
def test_critical_ratios(fixed, charge):
    rng, g, compared = np.random.default_rng(5), mp.mpf(charge), 0
    for _ in range(30):
        A, B = (int(each) for each in rng.integers(1, 30, 2))
        w, h, size = (float(each) for each in 10 ** rng.uniform((-8, -8, 0), (-1, -1, 6)))
        found = theory.critical_imbalance_ratio(A, B, w, h, fixed=fixed, size=size, charge=charge)
        if found == 1:
            continue
        K = A + B
        k = mp.mpf(w) * mp.mpf(h) * K / (K - 1) / mp.mpf(K) ** g * mp.mpf(size)
        if fixed == "majority":

            def excess(t, k=k, A=A, B=B):
                return (1 + g) * mp.log(t) - mp.log(k) - (2 + g) * mp.log(A + B * t)

            exact = 1 / mp.findroot(excess, 1 / mp.mpf(found), tol=1e-50)
        else:
            exact = (k ** (-1 / ((2 if fixed == "minority" else 1) + g)) - B) / A
        agree(found, exact)
        compared += 1
    assert compared > 5


@pytest.mark.parametrize("seed", range(10))
def test_weights_and_limits_of_vanishing_decays(seed):
    n, charge = random_counts(seed), (0, 1, 0.37)[seed % 3]
    K, g, counts = len(n), mp.mpf(charge), [mp.mpf(int(count)) for count in n]
    weights = [count ** (-(1 + g) / 2) for count in counts]
    unit = sum(counts) / sum(count * weight for count, weight in zip(counts, weights, strict=True))
    agree(theory.equalising_weights(n, charge), [weight * unit for weight in weights])

    centring = mp.eye(K) - mp.ones(K) / K
    squares = mp.diag([count ** (-(1 - g) / 2) for count in counts])
    limit = theory.weak_decay_limit(n, charge)
    agree_in_norm(limit.gram_features, squares)
    agree_in_norm(limit.gram_weights, centring * squares**-1 * centring)
    agree_in_norm(limit.logits, centring)

    found, roots = theory.seli(n), mp.diag([mp.sqrt(count) for count in counts])
    left, values, right = mp.svd_r(centring * roots)
    steep = float(mp.sqrt(max(counts) / min(counts)))
    agree_in_norm(found.gram_weights, left * mp.diag(values) * left.T)
    exact = roots**-1 * right.T * mp.diag(values) * right * roots**-1
    agree_in_norm(found.gram_features, exact, 1e-15 * steep + 1e-14)
    largest = max(values)
    assert all(
        abs(a - b) <= ACCURACY * largest for a, b in zip(numbers(found.singular_values), values, strict=True)
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_linear_heads_of_several_layers(depth):
    rng, D, lived = np.random.default_rng(depth), mp.mpf(depth), 0
    for seed in range(10):
        n = random_counts(seed, 4)
        w, h = (float(each) for each in 10 ** rng.uniform(-4, -1, 2))
        found, N, objective = theory.deep_linear_head(n, depth, w, h), mp.mpf(int(n.sum())), mp.mpf(0)
        c = (mp.mpf(w) ** D * mp.mpf(h)) ** (1 / (D + 1))
        for logit, count in zip(found.logits, n.tolist(), strict=True):
            level, exact = N ** ((D + 1) / D) * mp.mpf(w) * mp.mpf(h) ** (1 / D) / count, mp.mpf(0)
            if logit > 0:

                def excess(z, level=level):
                    return (1 - z) ** ((D + 1) / D) * z ** ((D - 1) / D) - level

                exact = 1 - mp.sqrt(level) if depth == 1 else mp.findroot(excess, float(logit), tol=1e-50)
                assert abs(mp.mpf(float(logit)) - exact) <= ACCURACY
                lived += 1
            energy = c * (mp.sqrt(count) * exact) ** (2 / (D + 1))
            objective += count * (1 - exact) ** 2 / (2 * N) + (D + 1) / 2 * energy
        agree(found.objective, objective)
    assert lived > 5


@pytest.mark.parametrize("bias", [None, 0.0, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_thresholds_of_free_features(bias, smoothing):
    for seed in range(6):
        n = np.append(random_counts(seed, 7), [7, 7])
        K, N, e, counts = len(n), mp.mpf(int(n.sum())), mp.mpf(smoothing), [mp.mpf(int(count)) for count in n]
        loss = ufm.LabelSmoothing(smoothing) if smoothing else ufm.CrossEntropy()
        problem = ufm.Problem(n, K, 1e-3, 1e-3, loss=loss, features="free", bias=bias)
        for twins in theory.twin_thresholds(problem):
            agree(twins.nuclear_weight, (1 - e) * mp.sqrt(twins.count) / N)
        targets = [(1 - e) * count / N + e / K for count in counts]
        if bias is None:
            chances = [mp.mpf(1) / K] * K
        else:
            chances = targets if bias == 0 else chances_of_bias(targets, mp.mpf(bias))
        dual = mp.matrix(K, K)
        for i in range(K):
            for j in range(K):
                dual[i, j] = mp.sqrt(counts[i]) / N * (chances[j] - e / K - (1 - e if i == j else 0))
        agree(theory.total_collapse_weight(problem), max(mp.svd_r(dual, compute_uv=False)))


def chances_of_bias(targets, decay):
    """Probabilities of the bias b of least cross-entropy plus decay |b|^2 / 2, by damped Newton steps."""
    K = len(targets)
    bias = mp.matrix(K, 1)

    def chances(b):
        powers = [mp.exp(each - max(b)) for each in b]
        return [power / sum(powers) for power in powers]

    def value(b):
        fit = sum(target * mp.log(chance) for target, chance in zip(targets, chances(b), strict=True))
        return decay / 2 * sum(each**2 for each in b) - fit

    for _ in range(100):
        p = chances(bias)
        gradient = mp.matrix([p[i] - targets[i] + decay * bias[i] for i in range(K)])
        hessian = mp.diag(p) + decay * mp.eye(K) - mp.matrix(p) * mp.matrix(p).T
        step, size = mp.lu_solve(hessian, gradient), mp.mpf(1)
        while value(bias - size * step) > value(bias) and size > 1e-20:
            size /= 2
        bias = bias - size * step
        if norm(step) < 1e-25:
            return chances(bias)
    raise AssertionError("Newton steps have not converged")
