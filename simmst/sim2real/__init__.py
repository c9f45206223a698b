"""Re-weighting of simulated samples by what they teach about real ones: bi-level optimisation with cutting planes."""

from simmst.sim2real.config import ReweightingConfig
from simmst.sim2real.reweight import SOLVERS, DivergedError, Reweighted, reweight
from simmst.sim2real.samples import Samples, TensorSamples

__all__ = ["SOLVERS", "DivergedError", "Reweighted", "ReweightingConfig", "Samples", "TensorSamples", "reweight"]
