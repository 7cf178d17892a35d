"""Arrays out of an untrusted .npz: no pickle, and no size believed before it is checked."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tte.errors import DataError

# An .npz is a zip that anyone may have written. 2 GiB holds all of CIFAR-10 as float64 (60,000 x 3,072 x 8 = 1.5 GB).
MAX_BYTES = 2 << 30
# Deflate reaches 1032:1 on constant bytes; real samples stay far below this. Small files may do as they like.
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 << 20

# What zipfile, its decompressors and NumPy's header parser raise on bytes that are no .npz.
_CORRUPT = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)

_Header = Callable[[Any], tuple[tuple[int, ...], bool, np.dtype[Any]]]
_HEADERS: dict[tuple[int, int], _Header] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: Path, wanted: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Those of the `wanted` arrays that the file holds; others are not looked at.

    Raises:
        DataError: no such file, not an .npz, truncated, an array of objects or strings, or more than MAX_BYTES (or
            MAX_RATIO times the file's size) when unpacked, as the zip's directory says.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), remedy="give an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
            chosen = {name: members[name] for name in wanted if name in members}
            total = sum(m.file_size for m in chosen.values())
            packed = max(1, path.stat().st_size)
            if total > MAX_BYTES or (total > RATIO_FREE_BYTES and total / packed > MAX_RATIO):
                raise DataError(
                    "unpacks to more than a file of samples should",
                    where=str(path),
                    limit=f"{total:,} bytes from {packed:,}; at most {MAX_BYTES:,}, and {MAX_RATIO} to 1",
                    remedy="use fewer samples, or store them as uint8 or int8",
                )
            return {name: _member(archive, info, path, name) for name, info in chosen.items()}
    except _CORRUPT as error:
        raise DataError(
            f"not a readable .npz ({error or type(error).__name__})",
            where=str(path),
            remedy="write it with numpy.savez_compressed",
        ) from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, name: str) -> NDArray[Any]:
    """One array; its header's shape and type must account for every byte of the member.

    ZipFile.open hands out at most `info.file_size` bytes, so the directory's sizes bound what is unpacked.
    """
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} has npy version {version}")
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject or dtype.kind not in "biuf":
            raise DataError(
                f"type {dtype} is not understood",
                where=f"{path}: {name}",
                remedy="store numbers: float, int8, uint8, or integer labels",
            )
        count = math.prod(shape)
        if min(shape, default=0) < 0 or file.tell() + count * dtype.itemsize != info.file_size:
            raise ValueError(
                f"{name} has {info.file_size:,} bytes, which its header, {dtype} {shape}, does not explain"
            )
        array = np.frombuffer(file.read(), dtype=dtype, count=count)
    return array.reshape(shape, order="F" if fortran else "C")
