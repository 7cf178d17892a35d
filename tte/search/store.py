"""Answers on disk, a JSON line each, written as they come: a search that was stopped, or killed, goes on from them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tte.errors import DataError


class Store:
    """Questions and answers, both JSON. One process writes at a time; a last line that is not whole is cut off.

    Args:
        path: the file; made if it is not there.

    Raises:
        DataError: another process writes to it, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        try:
            _lock(self._file)
        except OSError:
            self._file.close()
            raise DataError("another search works in this folder", where=str(path), remedy="choose another --folder") from None
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                self._known[_name(entry["q"])] = entry["a"]
            except (ValueError, TypeError, KeyError):
                self._file.close()
                remedy = "remove the line, or choose another --folder"
                raise DataError(f"line {number} is no answer of a search", where=str(path), remedy=remedy) from None
        if whole < len(content):
            self._file.truncate(whole)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, question: list[Any]) -> bool:
        return _name(question) in self._known

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[list[Any], Any]]:
        """Questions with their answers, in the order of the answers."""
        return ((json.loads(q), a) for q, a in self._known.items())

    def get(self, question: list[Any]) -> Any:
        """The answer to a question that was answered.

        Raises:
            KeyError: it was not.
        """
        return self._known[_name(question)]

    def put(self, question: list[Any], answer: Any) -> None:
        """Keeps an answer; it is on disk when this returns."""
        self._known[_name(question)] = answer
        self._file.write(json.dumps({"q": question, "a": answer}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _lock(file: BinaryIO) -> None:
    """Raises OSError if another process has locked the file; the lock ends with the process."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _name(question: list[Any]) -> str:
    return json.dumps(question)
