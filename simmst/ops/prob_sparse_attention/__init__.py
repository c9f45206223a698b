"""ProbSparse attention: real attention for the queries that need it, a cheap fill for the rest."""

from simmst.ops.prob_sparse_attention.api import (
    ProbSparseAux,
    prob_sparse_attend,
    prob_sparse_attention,
    prob_sparse_select,
)

__all__ = ["ProbSparseAux", "prob_sparse_attend", "prob_sparse_attention", "prob_sparse_select"]
