"""The counter-based random numbers of every backend: Philox4x32-10 in int64 tensor arithmetic.

A number depends only on its counter and key, so a kernel that works in tiles, a second backend and the backward pass
draw the same numbers without storing them. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.

Counter layout, each entry a 32-bit word:

    (column // 4, row, flattened batch index, stream)      the four words of the result serve columns 4c, ..., 4c + 3

``STREAM_DROPOUT``: column = key index, row = query index. ``STREAM_SAMPLE``: column = sample, row = query index
(0 when all queries share their samples), batch index 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STREAM_DROPOUT = 0
STREAM_SAMPLE = 1

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Return high and low word of a 32 x 32 bit product; multiplying by halves keeps intermediates below 2**49."""
    low = constant * (word & 0xFFFF)
    middle = (low >> 16) + constant * (word >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four random 32-bit words for each counter by Philox4x32-10.

    Args:
        counter: four int64 tensors of shapes that broadcast, values in [0, 2**32).
        key: int64 (2,), values in [0, 2**32).

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2**32).

    Example:
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> [f"{int(word):08x}" for word in philox4x32((zero, zero, zero, zero), zero.repeat(2))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    word0, word1, word2, word3 = counter
    key0, key1 = key.unbind(0)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], word0)
        high1, low1 = _multiply(_MULTIPLIERS[1], word2)
        word0, word1, word2, word3 = high1 ^ word1 ^ key0, low1, high0 ^ word3 ^ key1, low0
        key0, key1 = (key0 + _KEY_STEPS[0]) & _MASK, (key1 + _KEY_STEPS[1]) & _MASK
    return word0, word1, word2, word3


def philox_words(batch: Tensor, row: Tensor, columns: int, *, stream: int, key: Tensor) -> Tensor:
    """Return random words for a block of rows and all their columns, by the counter layout of this module.

    Args:
        batch: int64 flattened batch indices, of a shape that broadcasts with row.
        row: int64 row indices (...).
        columns: number of columns.
        stream: ``STREAM_DROPOUT`` or ``STREAM_SAMPLE``, the use of the numbers.
        key: int64 (2,), the seed.

    Returns:
        int64 (..., columns), values in [0, 2**32).

    Example:
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> philox_words(zero, zero, 5, stream=0, key=zero.repeat(2)).shape
        torch.Size([1, 5])
    """
    blocks = torch.arange((columns + 3) // 4, device=key.device)
    constant = torch.full((), stream, dtype=torch.int64, device=key.device)
    words = philox4x32((blocks, row[..., None], batch[..., None], constant), key)
    return torch.stack(words, dim=-1).flatten(-2)[..., :columns]


def keep_threshold(dropout_p: float) -> int:
    """Return the smallest word that survives dropout: word / 2**32 >= dropout_p, as an exact integer comparison.

    Example:
        >>> keep_threshold(0.5) == 2**31
        True
    """
    return min(math.ceil(dropout_p * 2.0**32), _MASK)


def philox_indices(rows: int, columns: int, upper: int, *, key: Tensor) -> Tensor:
    """Draw indices in [0, upper) for every row and column on ``STREAM_SAMPLE``: floor(word * upper / 2**32).

    Args:
        rows: number of rows.
        columns: number of indices per row.
        upper: exclusive bound, at most 2**31.
        key: int64 (2,), the seed; the result is on its device.

    Returns:
        int64 (rows, columns).

    Example:
        >>> philox_indices(1, 4, 100, key=torch.zeros(2, dtype=torch.int64)).shape
        torch.Size([1, 4])
    """
    row = torch.arange(rows, device=key.device)
    words = philox_words(torch.zeros_like(row), row, columns, stream=STREAM_SAMPLE, key=key)
    return (words * upper) >> 32


__all__ = ["STREAM_DROPOUT", "STREAM_SAMPLE", "keep_threshold", "philox4x32", "philox_indices", "philox_words"]
