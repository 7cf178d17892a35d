"""The best sum of gains within the limits, exactly: an integer program for HiGHS (Huangfu and Hall, 2018)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import highspy

from tte.search.candidate import Limits, Price
from tte.search.costs import Costs
from tte.search.desk import Pick
from tte.search.gains import Gains

_HEAD_ONLY = Pick()


def solve(
    costs: Costs,
    gains: Gains,
    limits: Limits,
    *,
    all_biases: bool = False,
    first: int = 0,
    rule: str = "norm",
    gap: float = 0.0,
) -> tuple[Pick, float]:
    """The pick of the largest sum of gains among those that the model's costs allow, and that sum.

    Binary variables: the bias of each layer trains; its weights train at one of the fractions; the error reaches
    it, and then all layers behind it: what each further layer costs adds up to the cut's cost.

    Args:
        all_biases: the biases of the cut and of all layers behind it train, as in TTE's schemes.
        first: index in `costs.names`: the cut is not before it.
        rule: for the pick's channels.
        gap: share of the sum by which the result may fall short of the optimum: above 0 it comes sooner.
    """
    program = _Program()
    names = costs.names[first:]
    if not names:
        return _HEAD_ONLY, 0.0
    later = [*(costs.cut[n] for n in names[1:]), Price(0, 0)]
    pairs = zip((costs.cut[n] for n in names), later, strict=True)
    steps = [Price(a.ram_bytes - b.ram_bytes, a.instructions - b.instructions) for a, b in pairs]
    reached = {n: program.add(0.0, cost) for n, cost in zip(names, steps, strict=True)}
    for a, b in itertools.pairwise(names):
        program.require({reached[a]: 1.0, reached[b]: -1.0}, 0.0)
    bias = {n: program.add(g, costs.bias[n]) for n in names if (g := gains.bias.get(n, 0.0)) > 0 or all_biases}
    weights = {
        (n, f): program.add(g, _part(costs.weights[n], f))
        for n in names
        for f, g in gains.weights.get(n, {}).items()
        if g > 0
    }
    for n in names:
        if n in bias:
            program.require({bias[n]: 1.0, reached[n]: -1.0}, 0.0, equal=all_biases)
        options = {v: 1.0 for (name, _), v in weights.items() if name == n}
        if options:
            program.require({**options, reached[n]: -1.0}, 0.0)
    ram = None if limits.ram_bytes is None else limits.ram_bytes - costs.head.ram_bytes
    instructions = None if limits.instructions is None else limits.instructions - costs.head.instructions
    chosen = program.maximise(ram, instructions, gap)
    if chosen is None:
        return _HEAD_ONLY, 0.0
    value = sum(program.gains[v] for v in chosen)
    trained = {n: f for (n, f), v in weights.items() if v in chosen}
    return Pick(frozenset(n for n, v in bias.items() if v in chosen), trained, rule), value


def _part(price: Price, fraction: float) -> Price:
    return Price(round(fraction * price.ram_bytes), round(fraction * price.instructions))


class _Program:
    """Binary variables with gains and costs, and rows over them."""

    def __init__(self) -> None:
        self.gains: list[float] = []
        self.costs: list[Price] = []
        self._rows: list[tuple[float, float, Mapping[int, float]]] = []

    def add(self, gain: float, cost: Price) -> int:
        self.gains.append(gain)
        self.costs.append(cost)
        return len(self.gains) - 1

    def require(self, row: Mapping[int, float], at_most: float, *, equal: bool = False) -> None:
        """Sum over `row` of coefficient * variable <= (or =) at_most."""
        self._rows.append((at_most if equal else -highspy.kHighsInf, at_most, dict(row)))

    def maximise(self, ram: int | None, instructions: int | None, gap: float) -> set[int] | None:
        """The variables that are 1 in the best solution; None if there is no solution."""
        for limit, costs in ((ram, [c.ram_bytes for c in self.costs]), (instructions, [c.instructions for c in self.costs])):
            if limit is not None:  # in shares of the largest: coefficients of 1e7 would strain the solver's tolerance
                unit = max([1, abs(limit), *costs])
                self.require({i: c / unit for i, c in enumerate(costs) if c}, limit / unit)
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (("output_flag", False), ("threads", 1), ("mip_rel_gap", gap), ("mip_abs_gap", 1e-9)):
            solver.setOptionValue(option, value)
        for gain in self.gains:
            solver.addVar(0.0, 1.0)
            index = solver.getNumCol() - 1
            solver.changeColIntegrality(index, highspy.HighsVarType.kInteger)
            solver.changeColCost(index, -gain)
        for lower, upper, row in self._rows:
            solver.addRow(lower, upper, len(row), list(row), list(row.values()))
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return {i for i, x in enumerate(solver.getSolution().col_value) if x > 0.5}
