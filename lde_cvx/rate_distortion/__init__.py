"""Rate–distortion explanations: the explainer, the distortion that it lowers (exact, by samples, by moments), and the moments of a Gaussian through a network."""

from lde_cvx.rate_distortion.explainer import RateDistortion, RateDistortionExplanation

__all__ = ["RateDistortion", "RateDistortionExplanation"]
