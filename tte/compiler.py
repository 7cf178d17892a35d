"""From a model file to a proved plan: the walk of `tte build` up to code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tte import passes
from tte.errors import ModelError
from tte.frontend import tflite
from tte.ir import Builder, Graph, verify
from tte.life import Life
from tte.ops.loss import Loss, MeanSquaredError, SoftmaxCrossEntropy
from tte.passes.dead import eliminate_dead
from tte.passes.save_channels import save_channels
from tte.passes.settle import settle
from tte.planner.arena import Plan, plan
from tte.planner.check import check
from tte.planner.order import order
from tte.planner.schedule import Program, schedule
from tte.planner.stream import stream
from tte.training import scheme as schemes
from tte.training.autodiff import LOSS, TRUTH, Numerics, derive
from tte.training.head import Head, find, replace_head

_ARENA_LIMIT = 1 << 27  # bytes; the proof takes eight times as much
#: Where gaps between buffers bring a plan above its budget, it is made for less.
_BUDGET_SHARES = (1.0, 0.97, 0.92, 0.85, 0.0)
LOSSES = ("auto", "cross-entropy", "mse")


@dataclass(frozen=True)
class Options:
    """What `tte build` is told about the training graph.

    Attributes:
        classes: outputs of a fresh head; 0 keeps the model's own.
        update: "none" (inference only), "last", "bias", "full" or the path of a TOML scheme.
        loss: "cross-entropy", "mse", or "auto" (mse when output and input have the same shape).
        head_seed: seed of a fresh head's weights.
        rows: the caller supplies the input row by row; it never lies in the arena whole.
        stream: whether stretches of the forward pass may run row by row.
        budget: an arena of so many bytes is small enough: beyond it, fewer instructions are preferred; 0: the smallest.
        target: what code is generated for: "portable", or "dsp" (see `tte.planner.kernels.TARGETS`).
        life: what the program does beside learning; changes nothing of the plan.
    """

    classes: int = 0
    update: str = "last"
    loss: str = "auto"
    head_seed: int = 0
    numerics: Numerics = Numerics()
    rows: bool = False
    stream: bool = True
    budget: int = 0
    target: str = "portable"
    life: Life = Life()


@dataclass(frozen=True)
class Pruned:
    """What dead-node elimination took out of the full training graph for a scheme."""

    operators: int
    of_operators: int
    nbytes: int
    of_nbytes: int


@dataclass(frozen=True, eq=False)
class Compiled:
    """A model ready for codegen.

    Attributes:
        forward: the normalised inference graph (with a fresh head if one was asked for).
        updates: what trains, by layer.
        loss_scale: the real value of one unit of the device's loss; 0 for inference only.
        dumps: the graph's text after each stage, for `--dump-ir`.
    """

    plan: Plan
    forward: Graph
    options: Options
    updates: dict[str, schemes.LayerUpdate]
    scheme: str
    loss: Loss | None
    loss_scale: float
    pruned: Pruned | None
    dumps: tuple[tuple[str, str], ...]


def compile_model(
    path: str | Path,
    options: Options,
    say: Callable[[str], None] = lambda _: None,
    *,
    name: str = "",
    scheme: schemes.UpdateScheme | None = None,
) -> Compiled:
    """Imports, normalises, differentiates, prunes, orders and places a model, and proves the plan.

    Args:
        name: the model's name, if it is not the file's.
        scheme: what trains, instead of `options.update`.

    Raises:
        ModelError: the model or the scheme cannot be run or trained.
    """
    imported = tflite.load(path)
    imported = replace(_unreserved(imported), name=name or imported.name)
    if len(imported.inputs) != 1 or len(imported.outputs) != 1:
        what = f"the model has {len(imported.inputs)} inputs and {len(imported.outputs)} outputs"
        raise ModelError(what, where=str(path), limit="one of each")
    dumps = [("1-imported", imported.text())]
    forward = passes.run(passes.NORMALISE, imported)
    if options.classes:
        forward = verify(replace_head(forward, options.classes, options.head_seed))
    dumps.append(("2-normalised", forward.text()))
    if options.update == "none" and scheme is None:
        options = replace(options, numerics=options.numerics.completed(None))
        program = schedule(verify(settle(forward)), forward.outputs, target=options.target)
        result = _planned(program, options)
        return Compiled(result, forward, options, {}, "none", None, 0.0, None, tuple(dumps))
    head = find(forward)
    loss = choose_loss(forward, head, options.loss)
    scheme = scheme or schemes.load(options.update, forward)
    options = replace(options, numerics=options.numerics.completed(scheme))
    updates = schemes.resolve(forward, scheme, head.node)
    derived = derive(forward, head, loss, updates, options.numerics)
    dumps.append(("3-derived", derived.text()))
    training = verify(settle(verify(save_channels(verify(eliminate_dead(derived))))))
    dumps.append(("4-pruned", training.text()))
    say("planning")
    program = schedule(training, forward.outputs, (head.logits, LOSS), options.target)
    result = _planned(program, options)
    dumps.append(("5-planned", result.program.graph.text()))
    scale = loss.loss_scale(training.type(next(n.inputs[0] for n in training.nodes if isinstance(n.op, Loss))))
    pruned = _pruned(forward, head, loss, training, options.numerics)
    return Compiled(result, forward, options, updates, scheme.name, loss, scale, pruned, tuple(dumps))


def _planned(program: Program, options: Options) -> Plan:
    """Order, segments, addresses, and the proof of them."""
    # Training first: streaming stops where the forward pass no longer holds the peak.
    ordered = order(program, program.forward).program
    for share in _BUDGET_SHARES:
        budget = int(options.budget * share)
        streamed = stream(ordered, budget, options.rows) if options.stream or options.rows else ordered
        result = _bounded(plan(order(streamed).program, options.budget))
        if result.arena_bytes <= options.budget or not budget:
            break
    check(result)
    return result


def _bounded(result: Plan) -> Plan:
    """The plan, if its arena is of a size that can be proved (and that any board could have)."""
    if result.arena_bytes > _ARENA_LIMIT:
        node = result.program.graph.nodes[result.peak_step]
        raise ModelError(f"needs an arena of {result.arena_bytes:,} bytes", where=node.name, limit=f"{_ARENA_LIMIT:,} bytes")
    return result


def _unreserved(graph: Graph) -> Graph:
    """The graph without tensors of the names that training gives its own."""
    builder = Builder.of(graph)
    return graph.renamed({name: builder.unique(f"model/{name}") for name in (TRUTH, LOSS) if name in graph.tensors})


def choose_loss(forward: Graph, head: Head, wish: str) -> Loss:
    """The loss by name; "auto" takes mean squared error for a model whose output has its input's shape."""
    if wish not in LOSSES:
        raise ModelError(f"unknown loss {wish!r}", where="--loss", remedy=f"one of {', '.join(LOSSES)}")
    same = forward.type(forward.inputs[0]).elements == forward.type(head.logits).elements and not head.softmax
    if wish == "mse" or (wish == "auto" and same):
        if head.softmax:
            raise ModelError("the model ends in a softmax", where=head.logits, remedy="use --loss cross-entropy")
        return MeanSquaredError()
    return SoftmaxCrossEntropy()


def _pruned(forward: Graph, head: Head, loss: Loss, training: Graph, numerics: Numerics) -> Pruned | None:
    """Backward operators and their tensors' bytes, in the full training graph and in the pruned one."""
    everything = schemes.resolve(forward, schemes.load("full", forward), head.node)
    try:
        full = eliminate_dead(derive(forward, head, loss, everything, numerics))
    except ModelError:
        return None  # some layer cannot train at all: there is no full graph to compare with
    known = {n.name for n in forward.nodes}

    def size(graph: Graph) -> tuple[int, int]:
        backward = [n for n in graph.nodes if n.name not in known]
        masks = [o for n in graph.nodes for o in n.outputs if graph.type(o).dtype == "bit"]
        made = {o for n in backward for o in n.outputs if not graph.mutated(n)} | set(masks)
        saved = {i for n in backward for i in n.inputs for f in forward.nodes if i in f.outputs}
        return len(backward), sum(graph.type(o).nbytes for o in made | saved)

    (all_ops, all_bytes), (ops, nbytes) = size(full), size(training)
    return Pruned(all_ops - ops, all_ops, all_bytes - nbytes, all_bytes)
