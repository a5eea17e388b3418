"""Problems of equal shape side by side: every number of a `Problem` with a leading axis, in float64 NumPy.

Formulas that are written for ``...`` leading axes take them in the place of a problem: `counts` is (members, K)
instead of (K,), and so on. A single problem is one of one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ufm.losses import Loss
from ufm.model.problem import FeatureSet, Problem


class Problems:
    """Problems with as many classes and dimensions, the same loss class, feature set and kind of bias.

    Args:
        problems: at least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def loss(self) -> Loss:
        """The loss, where all members have the same."""
        return self.problems[0].loss

    @property
    def features(self) -> FeatureSet:
        """The feature set."""
        return self.problems[0].features

    @property
    def num_classes(self) -> int:
        """``K``."""
        return self.problems[0].num_classes

    @property
    def num_logits(self) -> int:
        """Logits of every row: ``K``, or with soft targets what these are over."""
        return self.problems[0].num_logits

    @property
    def dim(self) -> int:
        """``d``."""
        return self.problems[0].dim

    @functools.cached_property
    def counts(self) -> Float[np.ndarray, "members K"]:
        """``n_k``."""
        return np.stack([problem.counts for problem in self.problems]).astype(np.float64)

    @functools.cached_property
    def num_samples(self) -> Float[np.ndarray, " members"]:
        """``N``."""
        return self.counts.sum(axis=1)

    @property
    def priors(self) -> Float[np.ndarray, "members K"]:
        """``n_k / N``."""
        return self.counts / self.num_samples[:, None]

    @functools.cached_property
    def weight_decay(self) -> Float[np.ndarray, " members"]:
        """``lambda_W``."""
        return np.array([problem.weight_decay for problem in self.problems])

    @functools.cached_property
    def feature_decays(self) -> Float[np.ndarray, "members K"]:
        """``lambda_H,k``."""
        decays = [problem.feature_decay for problem in self.problems]
        if all(isinstance(own, float) for own in decays):
            return np.broadcast_to(np.array(decays)[:, None], self.counts.shape)
        return np.stack([problem.feature_decays for problem in self.problems])

    @functools.cached_property
    def charged_decay(self) -> Float[np.ndarray, " members"]:
        """``lambda_W``, 0 where the classifier is fixed."""
        return np.array([problem.charged_decay for problem in self.problems])

    @functools.cached_property
    def classifier(self) -> Float[np.ndarray, "members K d"] | None:
        """The fixed classifiers, or None for problems whose classifier is free."""
        if self.problems[0].classifier is None:
            return None
        return np.stack([np.asarray(problem.classifier) for problem in self.problems])

    @functools.cached_property
    def nuclear_weights(self) -> Float[np.ndarray, "members K"]:
        """``l_k = sqrt(lambda_W lambda_H,k)``."""
        return np.sqrt(self.weight_decay)[:, None] * np.sqrt(self.feature_decays)

    @functools.cached_property
    def bias(self) -> Float[np.ndarray, " members"] | None:
        """``lambda_b``, or None for problems without a bias."""
        if self.problems[0].bias is None:
            return None
        return np.array([problem.bias for problem in self.problems], np.float64)
