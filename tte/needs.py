"""RAM that a program will need, as far as its plan tells before it is compiled."""

from __future__ import annotations

from tte import codegen, latent
from tte.life import Life
from tte.planner.arena import Plan
from tte.training.autodiff import TRUTH

FIRMWARE_ROOM = 512
"""Bytes for the firmware's own variables, where RAM is to be shared out."""
STACK_ROOM = 1536
"""Bytes of stack where a board's usual reserve does not fit; fast depthwise kernels may need some 1,050."""
RESERVE = STACK_ROOM + FIRMWARE_ROOM
"""Both: they come on top of a plan's RAM."""


def ram(plan: Plan, life: Life) -> int:
    """Bytes of RAM to expect: arena, trained state, the parts beside learning, and RESERVE."""
    return plan.arena_bytes + codegen.state_bytes(plan) + life_room(plan, life) + RESERVE


def life_room(plan: Plan, life: Life) -> int:
    """RAM to leave for what a device does beside learning, where RAM is shared out."""
    if not life.latent:
        return life.room_bytes(0, codegen.state_bytes(plan), 0)
    graph = plan.program.graph
    by_label = graph.type(TRUTH).dtype == "int32"
    classes = graph.type(plan.program.kept[0]).elements if by_label else 1
    return life.room_bytes(sample_bytes(plan), codegen.state_bytes(plan), classes)


def sample_bytes(plan: Plan) -> int:
    """What a past or held-out sample takes: what crosses the frozen cut, and its target if it has one."""
    truth = plan.program.graph.type(TRUTH)
    return latent.frozen_cut(plan).nbytes + (0 if truth.dtype == "int32" else truth.nbytes)
