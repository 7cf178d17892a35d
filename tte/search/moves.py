"""Neighbours of a candidate: small random changes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tte.search.desk import FRACTIONS, REDRAWN, Pick

RULES = ("norm", "fisher", "random", REDRAWN)


def moved(rng: random.Random, pick: Pick, names: Sequence[str]) -> Pick:
    """A neighbour: one to three random changes.

    Args:
        names: of the layers that may train, first to last.
    """
    for _ in range(rng.choice((1, 1, 2, 3))):
        pick = _changed(rng, pick, names)
    return pick


def _changed(rng: random.Random, pick: Pick, names: Sequence[str]) -> Pick:
    if not names:
        return pick
    weights, one = dict(pick.weights), rng.choice(names)
    move = rng.choice(("fraction", "fraction", "swap", "bias", "cut", "rule"))
    if move == "fraction":
        steps = (0.0, *FRACTIONS)
        at = min(range(len(steps)), key=lambda i: abs(steps[i] - weights.get(one, 0.0)))
        weights[one] = rng.choice([steps[i] for i in (at - 1, at + 1, at + 2) if 0 <= i < len(steps)])
    elif move == "swap" and weights:
        weights[one] = weights.pop(rng.choice(sorted(weights)))
    elif move == "bias":
        return replace(pick, biases=pick.biases ^ {one})
    elif move == "cut":  # biases from here on, or none before
        at = names.index(one)
        behind = frozenset(names[at:])
        return replace(pick, biases=rng.choice((pick.biases & behind, pick.biases | behind)))
    elif move == "rule":
        return replace(pick, rule=rng.choice(RULES))
    return replace(pick, weights={n: f for n, f in weights.items() if f})


