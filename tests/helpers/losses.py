"""Every loss of the package, found by introspection; and the matrix of losses, feature sets and biases."""

import dataclasses
import importlib
import inspect
import itertools
import pkgutil

import numpy as np

from ufm import losses
from ufm.losses import Loss
from ufm.losses.soft_targets import SoftTargets
from ufm.model.problem import FEATURE_SETS

#: Classes of the losses that `example` makes.
K = 4
BIASES = (None, 0.02, 0.0)

for module in pkgutil.iter_modules(losses.__path__, "ufm.losses."):
    importlib.import_module(module.name)  # a loss in a file of its own is found even if nothing imports it


def concrete_losses(base=Loss):
    """All subclasses of ``base`` in the package that can be instantiated."""
    below = list(itertools.chain.from_iterable(concrete_losses(cls) for cls in base.__subclasses__()))
    own = [base] if base.__module__.startswith("ufm.") and not inspect.isabstract(base) else []
    return list(dict.fromkeys(own + below))


def is_vector(field):
    return "Float[" in str(field.type)


def example(cls, rng):
    """An instance of ``cls`` with parameters made up from its field annotations."""
    made = {}
    for field in dataclasses.fields(cls):
        if is_vector(field):
            made[field.name] = rng.uniform(0.5, 2.0, size=K)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            made[field.name] = 0.5
    return cls(**made)


#: All but the one of contexts, which has no labels to choose: `losses/test_soft_targets.py`.
CLASSES = [cls for cls in concrete_losses() if cls is not SoftTargets]


def made_for(cls, counts):
    """An instance of a loss with per-class parameters that favour small classes, defaults elsewhere."""
    favour = (counts.max() / counts) ** 0.2
    given = {
        field.name: np.log(counts / counts.sum()) if field.name == "adjustments" else favour
        for field in dataclasses.fields(cls)
        if "Float[" in str(field.type)
    }
    return cls(**given)


MATRIX = list(itertools.product(CLASSES, FEATURE_SETS, BIASES))
#: Every loss with every feature set, the bias going round: what runs at both levels.
SUBSET = [cell for number, cell in enumerate(MATRIX) if number % 3 == (number // 3) % 3]
#: Every loss, feature sets and biases going round: what runs every day.
EVERYDAY = [cell for number, cell in enumerate(SUBSET) if number % 2 == number // 2 % 2]
