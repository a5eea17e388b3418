"""Metrics of neural collapse, their streaming statistics, and the separability of classes.

All of it is NumPy on plain arrays: nothing here knows a model.
"""

from ufm.metrics.collapse import RANK_TOLERANCE as RANK_TOLERANCE
from ufm.metrics.collapse import accuracy as accuracy
from ufm.metrics.collapse import between_spectrum as between_spectrum
from ufm.metrics.collapse import between_trace as between_trace
from ufm.metrics.collapse import cdnv as cdnv
from ufm.metrics.collapse import class_logits as class_logits
from ufm.metrics.collapse import classifier_from_means as classifier_from_means
from ufm.metrics.collapse import collapsed as collapsed
from ufm.metrics.collapse import cosines as cosines
from ufm.metrics.collapse import direction_residual as direction_residual
from ufm.metrics.collapse import gram as gram
from ufm.metrics.collapse import logit_margins as logit_margins
from ufm.metrics.collapse import margins as margins
from ufm.metrics.collapse import mean_cross_entropy as mean_cross_entropy
from ufm.metrics.collapse import measure as measure
from ufm.metrics.collapse import nc1 as nc1
from ufm.metrics.collapse import nc1_sum as nc1_sum
from ufm.metrics.collapse import nc1_unweighted as nc1_unweighted
from ufm.metrics.collapse import norm_ratios as norm_ratios
from ufm.metrics.collapse import norms as norms
from ufm.metrics.collapse import paired_cosines as paired_cosines
from ufm.metrics.collapse import squared_distances as squared_distances
from ufm.metrics.collapse import variance_ratio as variance_ratio
