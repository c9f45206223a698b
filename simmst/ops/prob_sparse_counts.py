"""How many keys ProbSparse attention samples, and how many queries it selects."""

from __future__ import annotations

# floor(e^n): ceil(ln L) is the number of entries below L. Comparing, and taking no logarithm, lets torch.compile keep
# a length symbolic within one such range.
_POWERS_OF_E = (1, 2, 7, 20, 54, 148, 403, 1096, 2980, 8103, 22026, 59874, 162754, 442413, 1202604, 3269017, 8886110)


def informer_count(length: int, factor: int) -> int:
    """min(factor * ceil(ln length), length), at least 1 for a positive length: how many samples, or selected queries.

    Example:
        >>> [informer_count(length, 5) for length in (0, 1, 2, 96, 720)]
        [0, 1, 2, 25, 35]
    """
    if length == 0:
        return 0
    logarithm = 0
    for power in _POWERS_OF_E:
        if length <= power:
            break
        logarithm += 1
    return max(1, min(factor * logarithm, length))


__all__ = ["informer_count"]
