"""Layers built on the operators of simmst.ops, with the signatures of their peers in torch.nn."""

from simmst.nn.prob_sparse_attention import ProbSparseAttention
from simmst.nn.spatial_attention import SpatialAttention
from simmst.nn.task_interaction import TaskInteraction

__all__ = ["ProbSparseAttention", "SpatialAttention", "TaskInteraction"]
