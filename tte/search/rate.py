"""The learning rate for a scheme: short runs at rates a factor of two apart, of which the largest that learns about best.

After the learning-rate range test of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017). The best rate of
a short run lies near the unstable ones. The short runs hold their rate after the warm-up while whole runs let it fall to
zero, so they are the harder test; and the rate that is taken lies at least one halving below the first that diverges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Doublings and halvings of the base rate that are tried.
UP, DOWN = 1, 4
#: Training steps of each short run; the last third is judged.
STEPS = 240
#: "About the lowest": above it by at most these shares of the loss, and of what was learnt.
_LOSS_SHARE, _GAIN_SHARE = 0.04, 0.25


def rates(base: float) -> tuple[float, ...]:
    """The rates that are tried, largest first: `rates(base)[i]` is the first one halved i times."""
    return tuple(base * 2.0 ** (UP - i) for i in range(UP + DOWN + 1))


def choose(losses: Sequence[float], chance: float) -> int:
    """The place of the rate to take: the largest whose loss is about the lowest.

    Args:
        losses: for each rate, largest first, the mean loss of the last third of a run over the same samples.
        chance: loss of a model that knows nothing; where little was learnt, small differences count.
    """
    best = min(losses)
    about = min(_LOSS_SHARE * best, _GAIN_SHARE * max(0.0, chance - best))
    return next(i for i, loss in enumerate(losses) if loss <= best + about)


def share_class(share: float) -> int:
    """Schemes of alike shares of trained weights have alike rates: the share's power of two, -4 to 0; -5 for none."""
    if share <= 0:
        return -5
    return next((power for power in range(-4, 0) if share <= 2.0 ** (power + 0.5)), 0)


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
