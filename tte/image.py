"""Reads a linked program back: sections, variables, and the most stack it can need."""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from tte.errors import ToolchainError

# An interrupt pushes r0-r3, r12, lr, pc, xPSR and up to 4 bytes of padding (Armv7-M ARM, B1.5.6), without the FPU.
EXCEPTION_FRAME_BYTES = 36
# libgcc's helpers for switch tables on Armv6-M (__gnu_thumb1_case_*) are called without appearing in the call graph;
# they push two registers and call nothing.
SWITCH_HELPER_BYTES = 8

# The float routines of libgcc: the Arm run-time ABI's names (IHI 0043, 4.1.2) and GCC's own (sf, df: modes).
_FLOAT_ROUTINE = re.compile(r"^(__aeabi_([fd]|c[fd]|h)\w+|__aeabi_u?[il]2[fd]|__\w+[sdhx]f(\d|[sd]i)?|__float\w+)$")


@dataclass(frozen=True)
class Section:
    """A section that takes memory when the program runs: address and size in bytes."""

    name: str
    address: int
    size: int


@dataclass(frozen=True)
class Variable:
    """A variable in RAM: its section, address and size in bytes."""

    name: str
    section: str
    address: int
    size: int


@dataclass(frozen=True)
class Image:
    """A linked program.

    Attributes:
        flash_bytes: from the start of flash to the last byte stored there, initial values of .data included.
        ram_static_bytes: .data and .bss with the gaps between them.
        stack_reserve_bytes: what the linker script keeps for the stack.
        float_routines: routines of floating-point arithmetic that were linked in.
    """

    elf: Path
    flash_bytes: int
    ram_static_bytes: int
    stack_reserve_bytes: int
    sections: tuple[Section, ...]
    variables: tuple[Variable, ...]
    float_routines: tuple[str, ...]


def read(elf: Path, flash_org: int, flash_bytes: int) -> Image:
    """Reads an ELF file linked by cortexm.ld.

    Raises:
        ToolchainError: the file is not such an ELF file.
    """
    try:
        with elf.open("rb") as stream:
            return _read(elf, ELFFile(stream), range(flash_org, flash_org + flash_bytes))
    except (OSError, ELFError, KeyError) as error:
        raise ToolchainError(f"cannot read the program that was built: {error}", where=str(elf)) from None


def _read(elf: Path, file: Any, flash: range) -> Image:
    sections, names = [], {}
    for index, section in enumerate(file.iter_sections()):
        names[index] = section.name
        if section["sh_flags"] & 2 and section["sh_size"]:  # SHF_ALLOC
            sections.append(Section(section.name, section["sh_addr"], section["sh_size"]))
    symbols: dict[str, int] = {}
    variables = []
    for symbol in file.get_section_by_name(".symtab").iter_symbols():
        symbols[symbol.name] = symbol["st_value"]
        section_name = names.get(symbol["st_shndx"], "")
        if symbol["st_info"]["type"] == "STT_OBJECT" and section_name in (".data", ".bss") and symbol["st_size"]:
            variables.append(Variable(symbol.name, section_name, symbol["st_value"], symbol["st_size"]))
    ends = [
        part["p_paddr"] + part["p_filesz"]
        for part in file.iter_segments()
        if part["p_type"] == "PT_LOAD" and part["p_filesz"] and part["p_paddr"] in flash
    ]
    return Image(
        elf=elf,
        flash_bytes=max(ends, default=flash.start) - flash.start,
        ram_static_bytes=symbols["__bss_end"] - symbols["__stack_top"],
        stack_reserve_bytes=symbols["__stack_top"] - symbols["__stack_bottom"],
        sections=tuple(sections),
        variables=tuple(sorted(variables, key=lambda item: item.address)),
        float_routines=tuple(sorted(name for name in symbols if _FLOAT_ROUTINE.match(name))),
    )


@dataclass(frozen=True)
class StackBound:
    """The most stack a program can use, in bytes, and the chain of calls that uses it."""

    size: int
    path: tuple[str, ...]


class _CallGraph:
    """Frames and calls of functions: the compiler's where it compiled them, else read from the machine code."""

    def __init__(self) -> None:
        self.frames: dict[str, int] = {}
        self.calls: dict[str, set[str]] = {}

    def add_compiled(self, text: str) -> None:
        """Takes a file written by GCC's -fcallgraph-info=su (VCG: node and edge lines)."""
        for title, label in re.findall(r'^node: \{ title: "([^"]+)" label: "([^"]*)"', text, re.MULTILINE):
            frame = re.search(r"\\n(\d+) bytes \((\w+(?:,\w+)?)\)", label)
            if frame and frame[2] != "static":
                raise ToolchainError("the function's stack use is not constant", where=title)
            if frame:
                self.frames[title] = int(frame[1])
        for source, target in re.findall(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', text, re.MULTILINE):
            self.calls.setdefault(source, set()).add(target)

    def unknown(self) -> set[str]:
        """Functions that are called but were not compiled here: routines of libc and libgcc."""
        return {target for targets in self.calls.values() for target in targets} - self.frames.keys()

    def add_disassembled(self, listing: str, aliases: Mapping[int, set[str]]) -> None:
        """Takes `objdump -d` for the functions not known yet: the sum of all their pushes bounds their frame.

        Args:
            aliases: all names by address; the listing gives only one of them.
        """
        found = re.findall(r"^([0-9a-f]+) <([^>]+)>:\n((?:.+\n?)*)", listing, re.MULTILINE)
        names = {int(address, 16): name for address, name, _ in found}
        starts = sorted(names)
        for address, name, body in found:
            if name in self.frames:
                continue
            frame = 0
            for registers in re.findall(r"\s(?:push|stmdb\s+sp!,|stmfd\s+sp!,)\s*\{([^}]*)\}", body):
                frame += 4 * sum(_register_count(part) for part in registers.split(","))
            frame += sum(int(size) for size in re.findall(r"\ssubw?\s+sp,(?:\s*sp,)?\s*#(\d+)", body))
            frame += sum(int(size) for size in re.findall(r"\sstrd?\s.*\[sp, #-(\d+)\]!", body))
            self.frames[name] = frame
            # by address: objdump names a target after any symbol before it, a constant of the linker's script, too
            targets = re.findall(r"\sb\w*(?:\.[nw])?\s+([0-9a-f]+) <", body)
            called = {names[starts[max(bisect_right(starts, int(target, 16)) - 1, 0)]] for target in targets}
            self.calls[name] = called - {name}
            for alias in aliases.get(int(address, 16), set()) - self.frames.keys():
                self.frames[alias], self.calls[alias] = 0, {name}

    def deepest(self, entry: str) -> StackBound:
        done: dict[str, StackBound] = {}

        def walk(name: str, above: tuple[str, ...]) -> StackBound:
            if name in above:
                raise ToolchainError(f"the program recurses: {' -> '.join([*above[above.index(name) :], name])}")
            if name not in done:
                if name not in self.frames:
                    raise ToolchainError(f"the stack use of {name} is not known", where=" -> ".join(above))
                below = [walk(target, (*above, name)) for target in sorted(self.calls.get(name, ()))]
                most = max(below, key=lambda item: item.size, default=StackBound(0, ()))
                done[name] = StackBound(self.frames[name] + most.size, (name, *most.path))
            return done[name]

        return walk(entry, ())


def _register_count(part: str) -> int:
    """How many registers "r4" or "r4-r7" names."""
    first, _, last = part.strip().partition("-")
    return int(last.lstrip("r")) - int(first.lstrip("r")) + 1 if last else 1


def stack_bound(elf: Path, sources: Path, call_graphs: Iterable[Path], objdump: str) -> StackBound:
    """The most stack the program can use from its reset on, one interrupt's frame included.

    Args:
        sources: the folder in which the compiler ran.
        call_graphs: the .ci files that GCC wrote beside the objects; those of sources that are gone are passed over.
        objdump: the disassembler, for the library's routines.

    Raises:
        ToolchainError: the program recurses, calls by pointer, or has a frame of variable size.
    """
    graph = _CallGraph()
    for file in sorted(call_graphs):
        text = file.read_text(encoding="utf-8", errors="replace")
        source = re.match(r'graph: \{ title: "([^"]+)"', text)
        if source and (sources / source[1]).is_file():
            graph.add_compiled(text)
    if graph.unknown():
        done = subprocess.run([objdump, "-d", str(elf)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolchainError(f"objdump failed: {done.stderr.strip()}", where=str(elf))
        graph.add_disassembled(done.stdout, _function_names(elf))
    bound = graph.deepest("Reset_Handler")
    return StackBound(bound.size + SWITCH_HELPER_BYTES + EXCEPTION_FRAME_BYTES, bound.path)


def _function_names(elf: Path) -> Mapping[int, set[str]]:
    """All names of each address in the code, without the Thumb bit."""
    found: dict[int, set[str]] = {}
    with elf.open("rb") as stream:
        table: Any = ELFFile(stream).get_section_by_name(".symtab")
        for symbol in table.iter_symbols():
            if symbol["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE") and not symbol.name.startswith("$"):
                found.setdefault(symbol["st_value"] & ~1, set()).add(symbol.name)
    return found


def section_sizes(image: Image) -> Mapping[str, int]:
    """Size in bytes by section name."""
    return {section.name: section.size for section in image.sections}
