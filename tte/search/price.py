"""What a candidate costs on the device, by the planner itself; and a bound below that, which is had at once."""

from __future__ import annotations

from dataclasses import replace

from tte import needs, steps
from tte.compiler import Options, choose_loss, compile_model
from tte.ir import Role, verify
from tte.life import Life
from tte.needs import RESERVE
from tte.passes.dead import eliminate_dead
from tte.passes.save_channels import save_channels
from tte.passes.settle import settle
from tte.planner.schedule import schedule
from tte.search.candidate import Candidate, Price
from tte.search.task import Task, forward
from tte.tradeoff import scheme_bound
from tte.training import head as heads
from tte.training import scheme as schemes
from tte.training.autodiff import LOSS, Numerics, derive


def price(task: Task, target: str, rows: bool, candidate: Candidate, life: Life = Life()) -> Price:
    """The plan that `tte build` makes without a limit: RAM of the whole program, predicted instructions of a training step.

    Steps for which the planner predicts nothing (all of them where the target is "portable") count as none.

    Args:
        target: what code is generated for.
        rows: the input comes row by row.
        life: what else the program does.
    """
    numerics = Numerics(mode=candidate.mode or task.mode)
    options = Options(task.classes, "last", task.loss, task.head_seed, numerics, rows, target=target)
    made = compile_model(task.model, options, scheme=candidate.scheme("candidate"))
    lines = [c for c in steps.costs(made.plan.program) if c.stage is None and c.calls != "inference"]
    return Price(needs.ram(made.plan, life), sum(line.predicted for line in lines))


def least_ram(task: Task, target: str, rows: bool, candidate: Candidate) -> int:
    """Bytes of RAM below which no plan for the candidate can come: about ten times as fast as `price`.

    Nothing is ordered, cut into segments or placed: the bound is `tte.tradeoff.scheme_bound`, for any order.
    """
    graph = forward(task)
    head = heads.find(graph)
    loss = choose_loss(graph, head, task.loss)
    updates = schemes.resolve(graph, candidate.scheme("candidate"), head.node)
    derived = derive(graph, head, loss, updates, Numerics(mode=candidate.mode or task.mode))
    training = verify(settle(save_channels(eliminate_dead(derived))))
    program = schedule(training, graph.outputs, (head.logits, LOSS), target)
    if rows:
        program = replace(program, supplied=graph.inputs[0])
    state = sum(-(-t.type.nbytes // 4) * 4 for t in program.graph.of_role(Role.PARAM))
    return state + scheme_bound(program).nbytes + RESERVE
