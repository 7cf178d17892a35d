"""What a search leaves behind: the scheme as TOML with its evidence, a JSON log, and two pictures. Files are replaced whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tte
from tte import files
from tte.search.candidate import Candidate, Found, Layer, Limits, Measured
from tte.training.scheme import UpdateScheme

#: The comment by which `tte build --update auto` knows a scheme's model.
HASH = "model-sha256"
#: The comment that ranks schemes for the same model.
ACCURACY = "accuracy"


@dataclass(frozen=True)
class Evidence:
    """What a search was told.

    Attributes:
        model, data: names of the files. model_hash: SHA-256 of the model's, hex.
        classes: outputs of a fresh head; 0: the model's own.
        strategy, seed, limits: as the strategy got them.
        board: its title. rate: base learning rate. mode: residual.
        validation: how many samples measured the accuracy. life: what else the program does, as options.
    """

    model: str
    model_hash: str
    data: str
    classes: int
    strategy: str
    seed: int
    limits: Limits
    board: str
    rate: float
    mode: str
    validation: int
    life: str = ""


def scheme_of(candidate: Candidate, layers: Sequence[Layer], name: str) -> UpdateScheme:
    """The scheme: a fraction where the strongest channels train (which people can read), else a list of channels."""
    known = {x.name: x for x in layers}
    weights: dict[str, float] = {}
    channels: dict[str, tuple[int, ...]] = {}
    for layer, chosen in candidate.weights:
        size = known[layer].channels
        if not chosen or set(chosen) == set(known[layer].ranking["norm"][: len(chosen)]):
            weights[layer] = len(chosen) / size if chosen else 1.0
        else:
            channels[layer] = chosen
    return UpdateScheme(name, frozenset(candidate.biases), weights, channels=channels)


def chosen(found: Found) -> Measured:
    """The choice with its figures.

    Raises:
        ValueError: a strategy did not measure its choice.
    """
    same = [m for m in found.front if m.candidate == found.candidate]
    if not same:
        raise ValueError("the choice is not on the front")
    return same[0]


def comments(found: Found, facts: Evidence) -> list[str]:
    """The evidence, a line each."""
    best, limits = chosen(found), facts.limits
    bounds = [f"{x:,} {unit}" for x, unit in ((limits.ram_bytes, "bytes of RAM"), (limits.instructions, "instructions")) if x]
    lines = [
        f"Update scheme for {facts.model}, found by `tte search`, tte {tte.__version__}.",
        f"{HASH} = {facts.model_hash}",
        f"{ACCURACY} = {best.mean:.4f}, standard deviation {best.spread:.4f} over {len(best.accuracies)} seeds: of "
        f"{facts.validation} validation samples after {limits.samples:,} training steps on others",
        f"ram = {best.price.ram_bytes:,} bytes, planned for {facts.board}{', with ' * bool(facts.life)}{facts.life}",
        f"instructions = {best.price.instructions:,} a training step, predicted",
        f"limits = {', '.join(bounds) or 'none'}",
        f"data = {facts.data}, {facts.classes or 'its own'} classes",
        f"residual = {found.candidate.mode or facts.mode}",
        f"strategy = {facts.strategy}, seed {facts.seed}",
        *found.notes,
    ]
    return [" ".join(line.split()) for line in lines]  # a file's name may hold anything


def write(
    path: Path, found: Found, layers: Sequence[Layer], facts: Evidence, rate: float = 0.0, baselines: Sequence[Measured] = ()
) -> tuple[Path, ...]:
    """Writes the scheme to `path`, and beside it `.json`, `-layers.png` and `-front.png`; gives the paths.

    Args:
        rate: what the scheme trains at; 0: not said.
        baselines: measured like `found.front`, to compare with; named `last-K`, `bias-K` ...

    Raises:
        DataError: a file cannot be written.
    """
    from tte.search import charts  # matplotlib is slow to load

    scheme, mode = scheme_of(found.candidate, layers, path.stem), found.candidate.mode or facts.mode
    scheme = replace(scheme, mode=mode, rate=rate, redraw=found.candidate.redraw)
    log, by_layer, front = (path.with_name(path.stem + end) for end in (".json", "-layers.png", "-front.png"))
    content = json.dumps(as_dict(found, facts, baselines), indent=1, allow_nan=False)
    title = f"{facts.model}, {facts.strategy}, for {facts.board}"
    charts.layers(by_layer, found, layers, title)
    charts.front(front, chosen(found), found.front, baselines, facts.limits, title)
    files.write(log, (content + "\n").encode())
    files.write(path, scheme.text(comments(found, facts)).encode())  # last: its presence means that all is there
    return path, log, by_layer, front


def as_dict(found: Found, facts: Evidence, baselines: Sequence[Measured] = ()) -> dict[str, Any]:
    """The log, as `tte search --json` gives it too."""
    return {
        "tte": tte.__version__,
        **asdict(facts),
        "chosen": _entry(chosen(found)),
        "contributions": [asdict(c) for c in found.contributions],
        "front": [_entry(m) for m in found.front],
        "baselines": [_entry(m) for m in baselines],
        "notes": list(found.notes),
    }


def _entry(m: Measured) -> dict[str, Any]:
    return {
        "name": m.name,
        "key": m.candidate.key,
        "biases": list(m.candidate.biases),
        "weights": {n: list(c) for n, c in m.candidate.weights},
        "mode": m.candidate.mode,
        "learning_rate": m.candidate.rate,
        "redraw": m.candidate.redraw,
        **asdict(m.price),
        "accuracy": m.mean,
        "spread": m.spread,
        "accuracies": list(m.accuracies),
    }


def nondominated(measured: Sequence[Measured]) -> list[Measured]:
    """Those to which no other is preferable, least RAM first: more RAM must bring more accuracy."""
    kept: list[Measured] = []
    for m in sorted(measured, key=lambda m: (m.price.ram_bytes, -m.mean)):
        if not kept or m.mean > kept[-1].mean:
            kept.append(m)
    return kept
