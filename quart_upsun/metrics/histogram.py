"""Histograms of durations with fixed buckets, which can be added up over processes and minutes."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate

RATIO = 2**0.25
"""The ratio of the bounds of a bucket, so the largest relative error of a percentile."""
# A bucket contains the values up to its bound: from a millisecond to about a minute, and above.
BOUNDS: tuple[float, ...] = tuple(0.001 * RATIO**n for n in range(65))


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket of a duration, from 0 to `len(BOUNDS)`."""
    return bisect_left(BOUNDS, seconds)


def percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """Return a percentile in seconds; None if the histogram is empty.

    It is in the bucket of the exact value (the smallest one that at least this share of the values
    does not exceed), at the place that its rank has in the bucket.

    Args:
        buckets: the number of values by bucket.
        share: 0.95 for the 95th percentile.
    """
    numbers = sorted(buckets)
    counts = [buckets[number] for number in numbers]
    total = sum(counts)
    if total == 0:
        return None
    rank = max(1, math.ceil(share * total))
    for number, count, end in zip(numbers, counts, accumulate(counts), strict=True):
        if rank <= end:
            low = BOUNDS[number - 1] if number else 0.0
            high = BOUNDS[number] if number < len(BOUNDS) else low * RATIO
            return low + (high - low) * (rank - (end - count)) / count
    raise AssertionError("unreachable: the last bucket ends with the total")
