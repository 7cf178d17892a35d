"""Update schemes: which biases and which channels of which weights train."""

from __future__ import annotations

import difflib
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tte.errors import ModelError
from tte.ir import Graph, Node
from tte.ops.linear import Linear, weight_scales

BUILT_IN = ("last", "bias", "full")
#: The device counts steps in 32 bits, and takes the number as an int32.
_REDRAW_LIMIT = 2**31 - 1
_KEYS = ("head", "redraw", "learning_rate", "mode", "bias", "weights", "channels")
_MODES = ("r4", "r8", "sr")


@dataclass(frozen=True)
class UpdateScheme:
    """What trains beside the head, by layer name.

    Attributes:
        name: "last", "bias", "full" or the file's name.
        bias: layers whose bias trains.
        weights: layers whose weights train, with the fraction of input channels (depthwise: of channels) in (0, 1].
        channels: layers whose weights train, with the channels that do (ascending): for any choice but the strongest.
        head: whether the head trains (weights and bias).
        redraw: where only some channels train, others are drawn at random every so many steps; 0: never.
        mode: residual kept for each weight, "r4", "r8" or "sr"; empty: not said.
        rate: learning rate; 0: not said.
    """

    name: str
    bias: frozenset[str] = frozenset()
    weights: Mapping[str, float] = field(default_factory=dict)
    head: bool = True
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    redraw: int = 0
    mode: str = ""
    rate: float = 0.0

    def text(self, comments: Sequence[str] = ()) -> str:
        """The scheme as TOML that `load` reads; `comments` come first, a line each."""
        lines = [f"# {c}".rstrip() for c in comments]
        lines += [] if self.head else ["head = false"]
        lines += [f"redraw = {self.redraw}"] if self.redraw else []
        lines += [f"learning_rate = {self.rate!r}"] if self.rate else []
        lines += [f'mode = "{self.mode}"'] if self.mode else []
        lines += ["bias = [", *(f"  {_quoted(n)}," for n in sorted(self.bias)), "]"] if self.bias else []
        for title, table in (("weights", self.weights), ("channels", self.channels)):
            if table:
                lines += ["", f"[{title}]"]
                lines += [f"{_quoted(n)} = {list(v) if isinstance(v, tuple) else v}" for n, v in table.items()]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class LayerUpdate:
    """What of one layer trains: its bias, its weights, and which channels of them (empty: all).

    Attributes:
        redraw: the channels are the first choice, and others are drawn every so many steps (`tte.ops.redraw`); 0: never.
    """

    bias: bool = False
    weights: bool = False
    channels: tuple[int, ...] = ()
    redraw: int = 0


def linear_nodes(graph: Graph) -> tuple[Node, ...]:
    """The layers with weights, in order."""
    return tuple(n for n in graph.nodes if isinstance(n.op, Linear))


def load(spec: str, graph: Graph) -> UpdateScheme:
    """A built-in scheme by name, or one from a TOML file.

    Raises:
        ModelError: no such scheme or file, a malformed file, a layer the graph lacks, or a fraction out of range.
    """
    names = [n.name for n in linear_nodes(graph)]
    if spec == "last":
        return UpdateScheme("last")
    if spec == "bias":
        return UpdateScheme("bias", frozenset(names))
    if spec == "full":
        return UpdateScheme("full", frozenset(names), dict.fromkeys(names, 1.0))
    path = Path(spec)
    if not path.is_file():
        raise ModelError(
            "no such update scheme",
            where=spec,
            remedy=f"use one of {', '.join(BUILT_IN)}, or the path of a TOML file with `bias`, `[weights]`, `[channels]`",
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"not a readable TOML file: {error}", where=spec) from None
    return _from_content(content, path, names, graph)


def _quoted(name: str) -> str:
    """A TOML string; its escapes are JSON's."""
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")


def _from_content(content: Mapping[str, Any], path: Path, names: list[str], graph: Graph) -> UpdateScheme:
    where = str(path)
    unknown = set(content) - {"model", *_KEYS}
    if unknown:
        raise ModelError(f"unknown key {sorted(unknown)[0]!r}", where=where, remedy=f"keys: model, {', '.join(_KEYS)}")
    bias, weights, head = content.get("bias", []), content.get("weights", {}), content.get("head", True)
    channels = content.get("channels", {})
    tables = isinstance(weights, dict) and isinstance(channels, dict)
    if not isinstance(bias, list) or not tables or not isinstance(head, bool):
        raise ModelError("bias must be a list of layers, weights a table, channels a table, head true or false", where=where)
    redraw = content.get("redraw", 0)
    if type(redraw) is not int or not 0 <= redraw <= _REDRAW_LIMIT:
        raise ModelError(f"redraw = {redraw!r}", where=where, limit=f"a whole number of steps, 0 (never) to {_REDRAW_LIMIT}")
    rate, mode = content.get("learning_rate", 0.0), content.get("mode", "")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1000:
        raise ModelError(f"learning_rate = {rate!r}", where=where, limit="above 0, below 1000")
    if mode not in ("", *_MODES):
        raise ModelError(f"mode = {mode!r}", where=where, limit=f"one of {', '.join(_MODES)}")
    for layer in [*bias, *weights, *channels]:
        if layer not in names:
            near = difflib.get_close_matches(str(layer), names, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ModelError(f"the model has no layer {layer!r}", where=where, remedy=hint + "`tte inspect` lists them")
    for layer, fraction in weights.items():
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise ModelError(f"{layer}: fraction {fraction!r}", where=where, limit="above 0 and at most 1")
    for layer, listed in channels.items():
        if layer in weights:
            raise ModelError(f"{layer} has both a fraction and a list of channels", where=where, remedy="keep one of them")
        _check_channels(where, layer, listed, channel_count(graph, layer))
    chosen = {k: tuple(v) for k, v in channels.items()}
    return UpdateScheme(
        path.stem, frozenset(bias), {k: float(v) for k, v in weights.items()}, head, chosen, redraw, mode, float(rate)
    )


def _check_channels(where: str, layer: str, listed: Any, size: int) -> None:
    """Raises ModelError unless `listed` names channels of a layer with `size` of them, ascending."""
    if not isinstance(listed, list) or not listed or any(type(c) is not int for c in listed):
        raise ModelError(f"{layer}: channels {listed!r}", where=where, limit="a list of at least one whole number")
    outside = [c for c in listed if not 0 <= c < size]
    if outside:
        raise ModelError(f"{layer}: no channel {outside[0]}", where=where, limit=f"its channels are 0 to {size - 1}")
    if any(b <= a for a, b in itertools.pairwise(listed)):
        raise ModelError(f"{layer}: channels out of order, or named twice", where=where, limit="ascending numbers")


def channel_count(graph: Graph, layer: str) -> int:
    """How many channels the last weight axis of a layer has."""
    return graph.type(next(n for n in linear_nodes(graph) if n.name == layer).inputs[1]).shape[-1]


def resolve(graph: Graph, scheme: UpdateScheme, head: Node | None) -> dict[str, LayerUpdate]:
    """The scheme applied to a graph: what trains, by node name; layers that stay frozen are absent."""
    updates = {}
    for node in linear_nodes(graph):
        if head is not None and node.name == head.name and scheme.head:
            updates[node.name] = LayerUpdate(bias=True, weights=True)
            continue
        fraction, listed = scheme.weights.get(node.name, 0.0), scheme.channels.get(node.name, ())
        if listed:
            every = len(listed) == channel_count(graph, node.name)
            update = LayerUpdate(node.name in scheme.bias, True, () if every else listed)
        else:
            update = LayerUpdate(node.name in scheme.bias, fraction > 0, strongest_channels(graph, node, fraction))
        if update.bias or update.weights:
            updates[node.name] = replace(update, redraw=scheme.redraw if update.channels else 0)
    if scheme.redraw and not scheme.channels and min(scheme.weights.values(), default=1) >= 1:
        remedy = "a fraction below 1 for some layer, or no `redraw`"
        raise ModelError("redraw has no effect: no layer trains in part", where=scheme.name, remedy=remedy)
    return updates


def strongest_channels(graph: Graph, node: Node, fraction: float) -> tuple[int, ...]:
    """The channels of the last weight axis with the largest L2 norm of real weights, ascending; () for all of them."""
    size = graph.type(node.inputs[1]).shape[-1]
    count = max(1, round(fraction * size))
    if fraction == 0 or count >= size:
        return ()
    return tuple(sorted(channels_by_norm(graph, node)[:count]))


def channels_by_norm(graph: Graph, node: Node) -> tuple[int, ...]:
    """The channels of the last weight axis, those with the largest L2 norm of real weights first."""
    w = graph.type(node.inputs[1])
    geometry = node.op.site(graph.types(node.inputs))
    scales = np.array(weight_scales(w, geometry.out_c))
    data = graph.data(node.inputs[1]).reshape(geometry.weight_shape).astype(np.float64)
    real = data * (scales if geometry.depthwise else scales.reshape(-1, 1, 1, 1))
    norms = (real**2).sum(axis=(0, 1, 2))
    # A stable sort makes ties fall to the lower channel on every machine.
    return tuple(int(c) for c in np.argsort(-norms, kind="stable"))
