"""An evolutionary search for the largest sum of contributions within the limits (TTE: Lin et al., NeurIPS 2022)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tte.search.candidate import Limits
from tte.search.costs import Costs
from tte.search.desk import FRACTIONS, Pick
from tte.search.gains import Gains

_POPULATION, _PARENTS, _GENERATIONS = 96, 24, 80
_GENES = (0.0, *FRACTIONS)
_MUTATION = 0.1  # of a layer's gene; the number of biases moves by a few


@dataclass(frozen=True)
class _Genome:
    """Biases of the last so many layers; and a fraction for each layer's weights."""

    biases: int
    fractions: tuple[float, ...]

    def pick(self, names: Sequence[str]) -> Pick:
        tail = names[len(names) - self.biases :]
        return Pick(frozenset(tail), {n: f for n, f in zip(names, self.fractions, strict=True) if f})


def evolve(costs: Costs, gains: Gains, limits: Limits, seed: int) -> tuple[Pick, float]:
    """The best pick met, and its sum of gains; by the model's costs it stays within the limits.

    The fittest quarter lives on; the others are children of two of them (each gene from either), or mutants of one. The
    first population are sparse picks, since most dense ones are too dear.
    """
    names = costs.names
    if not names:
        return Pick(), 0.0
    rng = random.Random(seed)
    known: dict[_Genome, float] = {}

    def fitness(genome: _Genome) -> float:
        """The sum of gains; below all of them by the excess, where a limit is passed."""
        if genome not in known:
            pick = genome.pick(names)
            price = costs.estimate(pick)
            pairs = ((price.ram_bytes, limits.ram_bytes), (price.instructions, limits.instructions))
            excess = sum(max(0.0, used / max(1, limit) - 1) for used, limit in pairs if limit is not None)
            known[genome] = gains.of(pick) if not excess else -1e3 - excess
        return known[genome]

    nothing = _Genome(0, (0.0,) * len(names))
    living = [nothing, *(_drawn(rng, len(names)) for _ in range(_POPULATION - 1))]
    for _ in range(_GENERATIONS):
        # Ties fall to the genome, not to the order of birth.
        parents = sorted(set(living), key=lambda g: (-fitness(g), g.biases, g.fractions))[:_PARENTS]
        children: list[_Genome] = []
        while len(parents) + len(children) < _POPULATION:
            if rng.random() < 0.5:
                children.append(_crossed(rng, rng.choice(parents), rng.choice(parents)))
            else:
                children.append(_mutated(rng, rng.choice(parents)))
        living = [*parents, *children]
    best = min(living, key=lambda g: (-fitness(g), g.biases, g.fractions))
    return (best.pick(names), fitness(best)) if fitness(best) > -1e3 else (Pick(), 0.0)


def _drawn(rng: random.Random, count: int) -> _Genome:
    dense = rng.random() * 0.5
    return _Genome(rng.randint(0, count), tuple(rng.choice(FRACTIONS) if rng.random() < dense else 0.0 for _ in range(count)))


def _crossed(rng: random.Random, a: _Genome, b: _Genome) -> _Genome:
    fractions = tuple(rng.choice(pair) for pair in zip(a.fractions, b.fractions, strict=True))
    return _Genome(rng.choice((a.biases, b.biases)), fractions)


def _mutated(rng: random.Random, a: _Genome) -> _Genome:
    fractions = tuple(rng.choice(_GENES) if rng.random() < _MUTATION else f for f in a.fractions)
    return _Genome(min(len(fractions), max(0, a.biases + rng.randint(-3, 3))), fractions)
