"""The examples round a model that learns in slices: they compile everywhere, and the bare loop learns digits in QEMU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from c_harness import WARNINGS, compilers, needs
from nets import DIGITS
from random_graphs import image_sample, sample
from tflite_builder import GraphBuilder

from tte import codegen, resources
from tte.compiler import Options, compile_model
from tte.frontend.schema import write
from tte.ops.base import Control
from tte.planner.arena import Plan
from tte.reference import Executor, pack
from tte.training.autodiff import TRUTH

_FREERTOS = """\
#include <stdint.h>
#define pdTRUE 1
#define portMAX_DELAY 0xFFFFFFFFu
void taskYIELD(void);
uint32_t ulTaskNotifyTake(long clear, uint32_t ticks);
"""
_ZEPHYR = """\
#include <stdint.h>
void k_yield(void);
int k_sem_take(void *sem, uint32_t timeout);
extern int sampled;
#define RTOS_TASK(name) void name(void *argument, void *b, void *c); void name(void *argument, void *b, void *c)
#define RTOS_YIELD() ((void)b, (void)c, k_yield())
#define RTOS_WAIT_FOR_SAMPLE() ((void)k_sem_take(&sampled, ~0u))
"""


def library(plan: Plan, folder: Path) -> None:
    """The library of a model `m`, whose calls can be resumed, in a folder."""
    for path, text in codegen.render(plan, "m", "test", resumable=True).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def some_plans(folder: Path) -> dict[str, Plan]:
    """Models that learn from labels and from targets, with their input whole and by rows, and one that does not learn."""
    found: dict[str, Plan] = {}
    for seed in range(600, 640):
        for rows in (False, True):
            made = (image_sample if rows else sample)(seed).compile(folder, rows=rows)
            if made is not None:
                program = made.plan.program
                labels = program.graph.type(TRUTH).dtype == "int32"
                found.setdefault(f"labels {labels}, rows {bool(program.supplied)}", made.plan)
        if len(found) == 4:
            break
    b = GraphBuilder(1)
    b.fully_connected(b.input((1, 6)), 3)
    (folder / "m.tflite").write_bytes(write(b.model()))
    found["learns nothing"] = compile_model(folder / "m.tflite", Options(update="none")).plan
    return found


@needs("gcc")
def test_examples_compile(tmp_path: Path) -> None:
    """With every kind of model, a stub of FreeRTOS, and three lines for another system; nothing in them stops interrupts."""
    (tmp_path / "freertos").mkdir()
    (tmp_path / "freertos" / "FreeRTOS.h").write_text(_FREERTOS)
    (tmp_path / "freertos" / "task.h").write_text("")
    plans = some_plans(tmp_path)
    assert len(plans) == 5
    for i, plan in enumerate(plans.values()):
        folder = tmp_path / str(i)
        library(plan, folder)
        examples = folder / "examples"
        other = tmp_path / f"other{i}"
        (other / "rtos_task").mkdir(parents=True)
        for file in (*examples.glob("*.h"), examples / "rtos_task" / "task.c"):
            (other / file.relative_to(examples)).write_text(file.read_text())
        (other / "rtos_task" / "rtos.h").write_text(_ZEPHYR)
        text = "".join(p.read_text() for p in folder.rglob("*.[ch]"))
        assert not any(word in text for word in ("cpsid", "PRIMASK", "BASEPRI", "disable_irq"))
        sources = [*examples.glob("*.c"), *examples.glob("*/*.c"), other / "rtos_task" / "task.c"]
        for compiler in compilers():
            flags = [*WARNINGS, "-Wundef", "-O1", "-fsyntax-only", f"-I{folder / 'include'}", f"-I{tmp_path / 'freertos'}"]
            done = subprocess.run([compiler, *flags, *map(str, sources)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:3000]


_APP = """\
#include <stdio.h>
#include <stdlib.h>
#include "app.h"
#include "m.h"
#include "samples.h"
static uint32_t at, learnt, turns, ticks, before, longest;
extern void _start(void);
static void tick(void) { ticks++; }
__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    (void *)0x20400000, (void *)_start, [15] = (void *)((uintptr_t)tick)};
#define TIMER(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
#define SYSTICK(offset) (*(volatile uint32_t *)(0xE000E010u + (offset)))
static uint32_t now(void) { return ~TIMER(4); } /* of 40 ns, of which an instruction takes 3.2 */
void app_open(void) {
    TIMER(0) = 0, TIMER(8) = 0xFFFFFFFFu, TIMER(4) = 0xFFFFFFFFu, TIMER(0) = 1;
    SYSTICK(4) = 2500 - 1, SYSTICK(8) = 0, SYSTICK(0) = 7;
    before = now();
}
int app_sample(void) {
    if (at == COUNT) {
        const uint8_t *s = m_state();
        printf("%lu %lu %lu %lu %lu\\n", (unsigned long)learnt, (unsigned long)turns, (unsigned long)longest,
               (unsigned long)ticks, (unsigned long)now());
        for (uint32_t i = 0; i < M_STATE_BYTES; i++) printf("%02x", s[i]);
        exit(0);
    }
    memcpy(m_input(), samples + at * M_INPUT_BYTES, M_INPUT_BYTES);
    at++;
    return 1;
}
int app_label(int32_t *label) { *label = labels[at - 1]; return *label >= 0; }
void app_answer(const int8_t *output) {
    for (uint32_t i = 0; i < M_OUTPUT_BYTES; i++) printf("%02x", (uint8_t)output[i]);
    printf("\\n");
}
void app_learnt(int32_t loss) { (void)loss; learnt++; }
void app_turn(void) {
    const uint32_t t = now(), waited = t - before;
    if (at < COUNT && waited > longest && turns > 0) longest = waited;
    turns++;
    before = now();
}
"""


@needs("arm-none-eabi-gcc", "qemu-system-arm")
def test_the_bare_loop_learns_digits(tmp_path: Path) -> None:
    """Some digits to learn from and some to read, one by one: the reference's answers and state. The loop comes round after
    every slice of 100,000 instructions, and an interrupt every 800 is served all the while."""
    plan = compile_model(DIGITS, Options(update="full", target="dsp")).plan
    library(plan, tmp_path)
    data = np.load(resources.path("demo") / "digits.npz")
    count = 12
    images = (data["x_train"][:count].reshape(count, -1).astype(np.int16) - 128).astype(np.int8)
    labels = [int(y) if i % 4 < 3 else -1 for i, y in enumerate(data["y_train"][:count])]
    (tmp_path / "samples.h").write_text(
        f"enum {{ COUNT = {count} }};\n"
        f"static const int8_t samples[] = {{{', '.join(map(str, images.ravel()))}}};\n"
        f"static const int8_t labels[] = {{{', '.join(map(str, labels))}}};\n"
    )
    (tmp_path / "app.c").write_text("#include <string.h>\n" + _APP)
    examples, src = tmp_path / "examples", tmp_path / "src"
    sources = [examples / "bare_loop" / "main.c", examples / "learning.c", tmp_path / "app.c", *src.glob("*.[cS]")]
    places = [f"-Wl,{p}" for p in ("--section-start=.vectors=0", "-Ttext=0x10000", "-Tdata=0x60000000")]
    program = tmp_path / "loop.elf"
    flags = ["-std=gnu11", "-O2", "-mthumb", "-mcpu=cortex-m7", f"-I{tmp_path / 'include'}", f"-I{examples}", f"-I{tmp_path}"]
    command = ["arm-none-eabi-gcc", *flags, "--specs=rdimon.specs", *places, *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    machine = ["qemu-system-arm", "-M", "mps2-an500", "-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=7"]
    machine += ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
    done = subprocess.run(machine, capture_output=True, text=True, check=False, timeout=300)
    *answers, figures, state = done.stdout.split("\n")

    executor = Executor(plan.program.graph)
    (x,) = (i for i in plan.program.graph.inputs if i != TRUTH)
    want = []
    for i, label in enumerate(labels):
        values = {x: images[i].reshape(plan.program.graph.type(x).shape), TRUTH: np.array(max(label, 0), np.int32)}
        if label >= 0:
            executor.control = Control(step=sum(y >= 0 for y in labels[:i]))
            executor.train(values)
        else:
            before = {k: v.copy() for k, v in executor.params.items()}
            want.append(executor.run(values)[plan.program.outputs[0]].tobytes().hex())
            executor.params = before
    assert answers == want
    block = bytearray(codegen.state_bytes(plan))
    for slot in codegen.state_slots(plan):
        bits = pack(executor.params[slot.name], slot.type.dtype)
        block[slot.offset : slot.offset + len(bits)] = bits
    assert bytes.fromhex(state) == bytes(block)
    learnt, turns, longest, ticks, elapsed = map(int, figures.split())
    assert learnt == sum(y >= 0 for y in labels)
    assert turns > 30 * learnt and longest / 3.2 < 105_000
    assert abs(ticks - elapsed / 2500) < 2
