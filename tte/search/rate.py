"""The learning rate for a scheme: runs at rates a factor of two apart, of which the smallest that learns about best.

After the learning-rate range test of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017). The best rate lies
near the unstable ones, and longer runs prefer lower rates, so of rates that learn about as well the smallest is taken.
Measured on mcunet-5fps and CIFAR-10 (12 schemes, 4 rates each): runs of 1,000 samples with the whole schedule rank rates as
runs of 4,000 do, or one halving higher; runs of 240 samples at a steady rate do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

#: Doublings and halvings of the base rate that may be tried; the search goes from the base downhill only.
UP, DOWN = 4, 5
#: Training steps of each run.
STEPS = 1000
#: "About the lowest" loss: above it by this share of it at most, where whole runs are four times as long.
_LOSS_SHARE = 0.04


def rates(base: float) -> tuple[float, ...]:
    """The rates that may be tried, largest first: `rates(base)[i]` is the first one halved i times."""
    return tuple(base * 2.0 ** (UP - i) for i in range(UP + DOWN + 1))


def wanted(losses: Mapping[int, float]) -> list[int]:
    """The rates to try next: the base and half of it first, then on beside the best while it has a side untried.

    Args:
        losses: by place in `rates`, what was measured: mean loss of the last quarter of a run.
    """
    if not losses:
        return [UP, UP + 1]
    best = min(losses, key=lambda i: (losses[i], i))
    return [i for i in (best - 1, best + 1) if 0 <= i <= UP + DOWN and i not in losses]


def choose(losses: Mapping[int, float], longer: float = 4.0) -> int:
    """The place of the rate to take: the smallest rate whose loss is about the lowest.

    Args:
        longer: how many times as long as these runs those are that the rate is for; 1: the lowest loss decides.
    """
    best = min(losses.values())
    share = _LOSS_SHARE * min(1.0, max(0.0, math.log(longer, 4)))
    return max(i for i, loss in losses.items() if loss <= best * (1 + share))


def share_class(share: float) -> int:
    """Schemes of alike shares of trained weights have alike rates: the share's power of two, -4, -2 or 0; -5 for none."""
    if share <= 0:
        return -5
    return next((power for power in (-4, -2) if share <= 2.0 ** (power + 1)), 0)


def representative(ranked: Mapping[str, tuple[int, ...]], share: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Weights of a candidate that stands for those of a share class: half the channels of evenly spaced layers, as many as
    make up the share; for the class of all weights, all.

    Args:
        ranked: its layers, first to last, each with its channels by rank.
    """
    if share < -4:
        return ()
    names = list(ranked)[:: -(2 ** max(0, -1 - share))]
    if share == 0:
        return tuple((n, ()) for n in sorted(names))
    return tuple((n, tuple(sorted(ranked[n][: max(1, len(ranked[n]) // 2)]))) for n in sorted(names))
