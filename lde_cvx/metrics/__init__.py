"""Measures of explanations, for any explainer with `attribute(inputs, target)`: each takes maps or an explainer and answers one number per input.

faithfulness   deletion, insertion, removal_curve (AURC), ordering_test, log_odds_curve, key_size, roar
stability      stability_under_noise, stability_under_attack, agreement, cascading_randomisation
localisation   pointing_game, iou, relevance_mass
certificates   validity_rate, tightness, importance_error
cost           measure
by quantus     quantus_metric: complexity, sensitivity and other measures of that library, an extra
statistics     interval (bootstrap), paired_test (Wilcoxon)
"""

from lde_cvx.metrics.certificates import importance_error, tightness, validity_rate
from lde_cvx.metrics.cost import Cost, measure
from lde_cvx.metrics.localisation import iou, pointing_game, relevance_mass
from lde_cvx.metrics.masking import OrderingTest, key_size, log_odds_curve, ordering_test
from lde_cvx.metrics.of_quantus import quantus_metric
from lde_cvx.metrics.removal import Curve, aurc, deletion, insertion, removal_curve
from lde_cvx.metrics.retraining import Roar, roar
from lde_cvx.metrics.sanity import Cascade, cascading_randomisation
from lde_cvx.metrics.stability import Stability, agreement, stability_under_attack, stability_under_noise
from lde_cvx.metrics.statistics import Interval, PairedTest, interval, paired_test

__all__ = [
    "Cascade", "Cost", "Curve", "Interval", "OrderingTest", "PairedTest", "Roar", "Stability", "agreement", "aurc", "cascading_randomisation",
    "deletion", "importance_error", "insertion", "interval", "iou", "key_size", "log_odds_curve", "measure", "ordering_test", "paired_test",
    "pointing_game", "quantus_metric", "relevance_mass", "removal_curve", "roar", "stability_under_attack", "stability_under_noise", "tightness", "validity_rate",
]  # fmt: skip
