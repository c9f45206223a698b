"""The public functions of ProbSparse attention, which check their arguments and choose a backend."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from simmst.core.prob_sparse_attention import FILLS, NORMALIZERS, SAMPLINGS, Options, informer_count
from simmst.ops.backends import choose, concrete
from simmst.ops.checks import (
    check_choice,
    check_dropout,
    check_flag,
    check_float_tensors,
    check_index_range,
    check_index_tensor,
    check_integer,
    check_number,
    describe,
    describe_all,
)
from simmst.ops.dispatch import cast, is_any_autocast, wants_gradient
from simmst.ops.measured_choice import bucket
from simmst.ops.prob_sparse_attention.library import FUSED, PATH, attend, forward, infer, select
from simmst.ops.prob_sparse_attention.short import again, draw, remember


class ProbSparseAux(NamedTuple):
    """Intermediate results of ProbSparse attention.

    Attributes:
        top: int64 (..., u), the selected queries in ascending order.
        lse: (..., u), logsumexp of their scaled scores; float32, or float64 for float64 inputs.
        measure: (..., L_Q), the sparsity measure of every query, in the dtype of lse.
    """

    top: Tensor
    lse: Tensor
    measure: Tensor


@overload
def prob_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    factor: int = ...,
    is_causal: bool = ...,
    scale: float | None = ...,
    dropout_p: float = ...,
    sample: Tensor | None = ...,
    sampling: str = ...,
    generator: torch.Generator | None = ...,
    fill: str | None = ...,
    normalizer: str = ...,
    return_aux: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def prob_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    factor: int = ...,
    is_causal: bool = ...,
    scale: float | None = ...,
    dropout_p: float = ...,
    sample: Tensor | None = ...,
    sampling: str = ...,
    generator: torch.Generator | None = ...,
    fill: str | None = ...,
    normalizer: str = ...,
    return_aux: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, ProbSparseAux]: ...
def prob_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    factor: int = 5,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    sample: Tensor | None = None,
    sampling: str = "per_query",
    generator: torch.Generator | None = None,
    fill: str | None = None,
    normalizer: str = "keys",
    return_aux: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ProbSparseAux]:
    """Attend with the u queries whose sampled scores are the least uniform, and fill all other rows.

        S = min(factor * ceil(ln L_K), L_K) keys are sampled, u = min(factor * ceil(ln L_Q), L_Q), both at least 1
        measure_i = max_s(q_i . k_s) - sum_s(q_i . k_s) / L_K
        out_i = softmax(scale * q_i K^T) V in the u rows with the largest measure; elsewhere the fill

    Args:
        query: (..., L_Q, D); float32, bfloat16, float16 or float64. Half types are computed in float32.
        key: (..., L_K, D) with the leading sizes of query and L_K >= 1.
        value: (..., L_K, D_V).
        factor: Informer's c; a larger factor selects more queries and samples more keys.
        is_causal: whether row i sees only the keys j <= i, also where L_Q != L_K (aligned at the top left). The
            selection still sees every key, as in Informer.
        scale: factor of the scores in the softmax; None is 1 / sqrt(D). The measure uses unscaled scores.
        dropout_p: probability of dropping an attention weight, in [0, 1); applied whenever it is positive.
        sample: keys of the measure, int64 (L_Q, S), or (S,) if all queries share them. None draws them.
        sampling: shape of a drawn sample, ``"per_query"`` (Informer) or ``"shared"`` (faster on long sequences).
        generator: source of sample and dropout, on any device. None is torch's global generator on the device of
            query. A CPU generator gives the same selection on every device and backend: Informer's for the same seed.
        fill: ``"mean"`` of all values; ``"cumsum"`` or ``"cummean"``, the sum or mean of the values j <= min(i, L_K-1).
            None is Informer's choice: ``"cumsum"`` when causal, else ``"mean"``.
        normalizer: ``"keys"`` divides the sum in the measure by L_K (Informer), ``"samples"`` by S.
        return_aux: whether to return a :class:`ProbSparseAux`, too.
        backend: ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``, or None to choose.

    Returns:
        out (..., L_Q, D_V) in the dtype of query, or (out, aux). Differentiable in query, key and value; neither the
        selection nor aux carries a gradient.

    Raises:
        TypeError, ValueError: an input has a wrong type, shape, device or value.
        BackendUnavailableError: the named backend cannot run the call.

    If two measures are equal, the lower index is selected. A NaN measure counts as larger than every number, so NaN in
    the input is selected and shows in the output.

    Source: Informer, Zhou et al. 2021, Eq. 4 and Algorithm 1, and the authors' code where it differs (the divisor, the
    sampling with replacement, the fills). Used in Sim-MSTNet's temporal branch and decoder, Eq. 9 and 12.

    Example:
        >>> query = key = value = torch.randn(2, 4, 96, 16)
        >>> out, aux = prob_sparse_attention(query, key, value, is_causal=True, return_aux=True)
        >>> out.shape, aux.top.shape
        (torch.Size([2, 4, 96, 16]), torch.Size([2, 4, 25]))
    """
    if is_any_autocast():
        query, key, value = cast(query, key, value)
    options = Options(is_causal, scale, fill, dropout_p)
    if return_aux is False:
        likewise = again(query, key, value, sample, factor, sampling, generator, normalizer, options, backend)
        if likewise is not None:
            return likewise
    if sample is not None and dropout_p == 0.0 and return_aux is False and sampling in SAMPLINGS:
        alone = infer(query, key, value, sample, factor, normalizer, options, backend)
        if alone is not None:
            return alone
    _check_attention(query, key, value)
    asked, options = options, _checked(options)
    check_integer("factor", factor, minimum=1)
    check_choice("sampling", sampling, SAMPLINGS)
    check_choice("normalizer", normalizer, NORMALIZERS)
    check_flag("return_aux", return_aux)
    queries, keys = query.shape[-2], key.shape[-2]
    if sample is not None:
        _check_sample(sample, query, key)
    chosen = _choose(backend, query, value)

    given = sample
    if sample is None:
        samples = informer_count(keys, factor)
        shape = (queries, samples) if sampling == "per_query" else (samples,)
        sample = draw(keys, shape, query, generator)
    seed = draw(2**32, (2,), query, generator) if dropout_p > 0.0 else None
    u = informer_count(queries, factor)
    if u == queries and not return_aux:  # nothing to select
        top = torch.arange(queries, device=query.device).expand(*query.shape[:-2], queries)
        everything: Tensor = attend(query, key, value, top, seed, options, chosen)[0]
        return everything
    if chosen in FUSED:
        out, lse, top, measure = forward(query, key, value, sample, seed, u, normalizer, options, chosen)
        if not return_aux:
            remember(query, key, value, given, sample, factor, sampling, normalizer, asked, backend, chosen)
    else:
        top, measure = select(query, key, sample, u, normalizer, chosen)
        out, lse = attend(query, key, value, top, seed, options, chosen)
    return (out, ProbSparseAux(top, lse, measure)) if return_aux else out


def prob_sparse_select(
    query: Tensor, key: Tensor, sample: Tensor, *, u: int, normalizer: str = "keys", backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Select the u queries whose sampled scores are the least uniform; the first half of ProbSparse attention.

    Args:
        query: (..., L_Q, D).
        key: (..., L_K, D).
        sample: keys of the measure, int64 (L_Q, S) or (S,).
        u: number of queries to select, from 1 to L_Q.
        normalizer: ``"keys"`` or ``"samples"``, see :func:`prob_sparse_attention`.
        backend: name of a backend, or None to choose.

    Returns:
        top: int64 (..., u), ascending. measure: (..., L_Q), float32, or float64 for float64 inputs. Neither carries a
        gradient.

    Raises:
        TypeError, ValueError: an input has a wrong type, shape, device or value.
        BackendUnavailableError: the named backend cannot run the call.

    Source: Informer, Zhou et al. 2021, Eq. 4.

    Example:
        >>> query, key = torch.tensor([[1.0], [0.0], [3.0]]), torch.tensor([[1.0], [-1.0]])
        >>> prob_sparse_select(query, key, torch.tensor([0, 1]), u=2)
        (tensor([0, 2]), tensor([1., 0., 3.]))
    """
    if is_any_autocast():
        query, key = cast(query, key)
    check_float_tensors(query=query, key=key)
    _check_query_key(query, key)
    check_choice("normalizer", normalizer, NORMALIZERS)
    queries = query.shape[-2]
    check_integer("u", u, minimum=min(1, queries), maximum=queries)
    _check_sample(sample, query, key)
    chosen = _choose(backend, query, key)
    found: tuple[Tensor, Tensor] = select(query, key, sample, u, normalizer, chosen)
    return found


def prob_sparse_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    fill: str | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend in the rows ``top`` and fill all others; the second half of ProbSparse attention.

    The arguments from is_causal on mean the same as in :func:`prob_sparse_attention`.

    Args:
        query: (..., L_Q, D).
        key: (..., L_K, D).
        value: (..., L_K, D_V).
        top: rows with attention, int64 (..., u), each at most once, in any order.
        is_causal: whether row i sees only the keys j <= i.
        scale: factor of the scores.
        fill: ``"mean"``, ``"cumsum"``, ``"cummean"`` or None.
        dropout_p: probability of dropping an attention weight.
        generator: source of the dropout.
        backend: name of a backend, or None to choose.

    Returns:
        out: (..., L_Q, D_V), differentiable in query, key and value. lse: (..., u), logsumexp of the scaled scores
        before dropout, in the order of top, float32 or float64; it carries no gradient.

    Raises:
        TypeError, ValueError: an input has a wrong type, shape, device or value.
        BackendUnavailableError: the named backend cannot run the call.

    Source: Informer, Zhou et al. 2021, Algorithm 1.

    Example:
        >>> x = torch.randn(2, 10, 8)
        >>> out, lse = prob_sparse_attend(x, x, x, torch.tensor([[0, 3], [1, 2]]))
        >>> torch.equal(out[0, 1], out[0, 2])
        True
    """
    if is_any_autocast():
        query, key, value = cast(query, key, value)
    _check_attention(query, key, value)
    options = _checked(Options(is_causal, scale, fill, dropout_p))
    check_index_tensor("top", top, device=query.device)
    if top.dim() < 1 or top.shape[:-1] != query.shape[:-2] or top.shape[-1] > query.shape[-2]:
        raise ValueError(
            "top must be (..., u) with the leading sizes of query and u <= L_Q, got "
            + describe_all(top=top, query=query)
        )
    check_index_range("top", top, query.shape[-2])
    chosen = _choose(backend, query, value)
    seed = draw(2**32, (2,), query, generator) if dropout_p > 0.0 else None
    found: tuple[Tensor, Tensor] = attend(query, key, value, top, seed, options, chosen)
    return found


def _choose(backend: str | None, query: Tensor, value: Tensor) -> str:
    width = concrete(max(query.shape[-1], value.shape[-1]))
    return choose(
        PATH,
        backend,
        device=query.device,
        dtype=query.dtype,
        bucket=bucket(query.shape[-2]),
        head_width=width,
        training=query.is_cuda and wants_gradient(query, value),
    )


def _check_attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    check_float_tensors(query=query, key=key, value=value)
    if value.dim() < 2 or value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            "value must be (..., L_K, D_V) with the leading sizes and the length of key, got "
            + describe_all(query=query, key=key, value=value)
        )
    _check_query_key(query, key)


def _check_query_key(query: Tensor, key: Tensor) -> None:
    if query.dim() < 2 or key.dim() < 2 or query.shape[:-2] != key.shape[:-2] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            "query must be (..., L_Q, D) and key (..., L_K, D) with the same leading sizes and the same D, got "
            + describe_all(query=query, key=key)
        )
    if key.shape[-2] == 0 or key.shape[-1] == 0:
        raise ValueError(f"key must have at least one position and a width of at least one, got {describe(key)}")


def _checked(options: Options) -> Options:
    """Check the options and return them with numbers as floats."""
    is_causal, scale, fill, dropout_p = options
    check_flag("is_causal", is_causal)
    if scale is not None:
        check_number("scale", scale)
        if abs(scale) == float("inf"):
            raise ValueError(f"scale must be finite, got {scale}")
    check_choice("fill", fill, (None, *FILLS))
    check_dropout(dropout_p)
    return Options(is_causal, None if scale is None else float(scale), fill, float(dropout_p))


def _check_sample(sample: Tensor, query: Tensor, key: Tensor) -> None:
    check_index_tensor("sample", sample, device=query.device)
    queries = query.shape[-2]
    if sample.dim() not in (1, 2) or sample.shape[-1] == 0 or (sample.dim() == 2 and sample.shape[0] != queries):
        raise ValueError(
            f"sample must be (L_Q, S) = ({queries}, S) or (S,) with S >= 1, got "
            + describe_all(sample=sample, query=query)
        )
    check_index_range("sample", sample, key.shape[-2])


__all__ = ["ProbSparseAux", "prob_sparse_attend", "prob_sparse_attention", "prob_sparse_select"]
