"""Candidates to learn from: drawn at random, cheap ones and such as the limits just allow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tte.search.candidate import Candidate
from tte.search.costs import Costs
from tte.search.desk import FRACTIONS, REDRAWN, Desk, Pick

_TRIED = 40  # drawn for each that is wanted, at most
_LEAST = 0.25  # of what the limits leave beside the head: more memory is not always more accuracy
_RULES = ("norm", "fisher", "fisher", "norm", "random", REDRAWN)


def draw(desk: Desk, costs: Costs, cuts: Sequence[int], count: int, rng: random.Random) -> dict[Candidate, Pick]:
    """So many different candidates that fit, or fewer where there are not so many.

    Args:
        cuts: how many layers from the end the error may go back, each as likely.
    """
    found: dict[Candidate, Pick] = {}
    drawn = 0
    while len(found) < count and drawn < _TRIED * count and costs.names:
        picks: dict[Candidate, Pick] = {}
        while len(picks) < count - len(found) and drawn < _TRIED * count:
            drawn += 1
            pick = _random(desk, costs, rng.choice(list(cuts)), rng)
            picks[pick.candidate(desk.layers)] = pick
        new = [c for c in picks if c not in found]
        found |= {c: picks[c] for c, ok in zip(new, desk.fits(new), strict=True) if ok}
    return found


def _random(desk: Desk, costs: Costs, cut: int, rng: random.Random) -> Pick:
    names = list(costs.names[max(0, len(costs.names) - cut) :])
    every = rng.random() < 0.75
    pick = Pick(frozenset(n for n in names if every or rng.random() < 0.8), {}, rng.choice(_RULES))
    share = rng.uniform(_LEAST, 1.0)
    limits, head = desk.limits, costs.head
    room = [
        None if bound is None else round(own + share * (bound - own))
        for bound, own in ((limits.ram_bytes, head.ram_bytes), (limits.instructions, head.instructions))
    ]
    asked = replace(limits, ram_bytes=room[0], instructions=room[1])
    most = rng.randint(1, max(1, len(names))) if room == [None, None] else len(names)
    rng.shuffle(names)
    for name in names[:most]:
        fraction = rng.choice(FRACTIONS)
        grown = replace(pick, weights={**pick.weights, name: fraction})
        if asked.allow(costs.estimate(grown)):
            pick = grown
    return pick


