"""C text that carries no program: identifiers, comments, and constants in flash."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tte.ir import Array, Node, Tensor
from tte.reference import pack

C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t"}
C_TYPES |= {"uint32": "uint32_t", "bit": "uint8_t", "int4": "uint8_t"}
_NAME_LIMIT = 48
_HEADERS = frozenset({
    "assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits", "locale", "math", "setjmp",
    "signal", "stdalign", "stdarg", "stdatomic", "stdbool", "stddef", "stdint", "stdio", "stdlib", "stdnoreturn",
    "string", "strings", "tgmath", "threads", "time", "uchar", "unistd", "wchar", "wctype", "main",
})  # fmt: skip


@dataclass
class Names:
    """C identifiers for tensor names: readable, unique, stable."""

    taken: dict[object, str] = field(default_factory=dict)

    def __call__(self, name: str, key: object = None) -> str:
        """The identifier of a tensor, or of what else `key` stands for."""
        key = key or name
        if key not in self.taken:
            base = re.sub(r"\W+", "_", name.split(";")[0], flags=re.ASCII).strip("_")[-48:].strip("_") or "t"
            base = f"t_{base}" if base[0].isdigit() else base
            wish, i = base, 1
            while wish in self.taken.values():
                wish, i = f"{base}_{i}", i + 1
            self.taken[key] = wish
        return self.taken[key]


def c_name(wish: str) -> str:
    """A model's name as a C identifier and folder name; no keyword, and no name of a header that C or tte includes."""
    name = re.sub(r"\W+", "_", wish, flags=re.ASCII).strip("_").lower()[:_NAME_LIMIT].strip("_") or "model"
    taken = name in _HEADERS or name.startswith("tte") or name[0].isdigit()
    return f"m_{name}" if taken else name


def comment(text: str) -> str:
    """Text that cannot end or upset a C comment, whatever names it holds: printable ASCII without an asterisk."""
    return re.sub(r"[^ -)+-~]", "_", text)


class Constants:
    """Constants that a program needs, each emitted once.

    Args:
        prefix: of their C names, the model's.
        names: gives identifiers.
    """

    def __init__(self, prefix: str, names: Names) -> None:
        self.prefix, self.names = prefix, names
        self.texts: dict[str, str] = {}
        self.shared: dict[tuple[str, str, bytes], str] = {}

    def symbol(self, tensor: Tensor) -> str:
        """The C name of a constant (or of a parameter's initial contents)."""
        symbol = f"{self.prefix}_data_{self.names(tensor.name)}"
        if symbol not in self.texts:
            assert tensor.data is not None
            data = tensor.data
            if tensor.type.dtype in ("bit", "int4"):
                data = np.frombuffer(pack(data, tensor.type.dtype), np.uint8)
            self.texts[symbol] = _array(symbol, data, comment(f"{tensor.name}: {tensor.type}"))
        return symbol

    def table(self, node: Node, label: str, data: Array) -> str:
        """The C name of a kernel's table."""
        # Many layers share tables (the powers of two, equal channels): one copy in flash serves them.
        key = (label, str(data.dtype), data.tobytes())
        if key not in self.shared:
            wish = f"{node.name.split(';')[0]}/{label}"
            symbol = self.shared[key] = f"{self.prefix}_data_{self.names(wish, key)}"
            self.texts[symbol] = _array(symbol, data, "")
        return self.shared[key]

    def declarations(self) -> Iterable[str]:
        """`extern` lines."""
        for symbol, text in self.texts.items():
            kind = text.split("*/\n")[-1].split("const ")[1].split(" ")[0]
            yield f"extern const {kind} {symbol}[];"


def _array(symbol: str, data: Array, about: str) -> str:
    flat = data.ravel()
    lines = [", ".join(map(str, flat[i : i + 24].tolist())) for i in range(0, flat.size, 24)]
    head = f"/* {about} */\n" if about else ""
    body = ",\n    ".join(lines)
    # Words are read from arrays of bytes, too.
    align = "" if data.dtype.itemsize == 4 else "_Alignas(4) "
    return f"{head}{align}const {C_TYPES[str(data.dtype)]} {symbol}[{flat.size}] = {{\n    {body}}};"
