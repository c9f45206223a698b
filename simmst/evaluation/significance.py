"""A paired test on blocks of time: is one forecast better than another beyond chance?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simmst.errors import DataError
from simmst.foundation.extras import import_extra

_FEW = 6  # least days for blocks of one day
_EXACT = 1 << 14  # most sign patterns that are all tested; of more, this many are drawn
LEVEL = 0.05


def block_length(origins: int, steps_per_day: int) -> int:
    """Return the number of origins in a block: a day, or a quarter of a day for less than six days.

    Example:
        >>> block_length(168, 24), block_length(48, 24)
        (24, 6)
    """
    return steps_per_day if origins >= _FEW * steps_per_day else max(steps_per_day // 4, 1)


def paired_test(
    one: npt.NDArray[np.floating], other: npt.NDArray[np.floating], *, steps_per_day: int
) -> tuple[float, int]:
    """Test whether two forecasts of the same points have the same mean error.

    Errors of neighbouring origins are correlated, so they are averaged over blocks of time (`block_length`), and the
    blocks are taken as independent. Under the null hypothesis both signs of a block's difference are equally likely.
    `scipy.stats.permutation_test` tests all patterns of signs, or 16,384 drawn ones where there are more. With n blocks
    no p value is below 2^(1 - n); for seven days that is .016.

    Args:
        one: (n,) mean error of each origin, in the order of time; NaN for an origin without known targets.
        other: (n,) mean errors of the other forecast.
        steps_per_day: origins in 24 hours.

    Returns:
        The two-sided p value, which is 1 where fewer than two blocks are known, and the number of blocks.

    Raises:
        DataError: the errors do not have the same origins.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> error = rng.random(7 * 24)
        >>> paired_test(error, error + 0.1, steps_per_day=24)
        (0.015625, 7)
        >>> paired_test(error, rng.permutation(error), steps_per_day=24)[0] > 0.05
        True
    """
    if one.shape != other.shape or one.ndim != 1:
        raise DataError(f"the errors are of {one.shape} and {other.shape} origins; compare forecasts of the same ones")
    length = block_length(len(one), steps_per_day)
    number = max(round(len(one) / length), 1)
    # A remainder of less than half a block joins the last block.
    block = np.minimum(np.arange(len(one)) // length, number - 1)
    difference = one.astype(np.float64) - other
    known = np.isfinite(difference)
    count = np.bincount(block[known], minlength=number)
    mean = np.bincount(block[known], weights=difference[known], minlength=number)[count > 0] / count[count > 0]
    if len(mean) < 2 or not np.any(mean):
        return 1.0, len(mean)
    stats = import_extra("scipy.stats", extra="forecast")
    found = stats.permutation_test(
        (mean, np.zeros_like(mean)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_EXACT,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue), len(mean)
