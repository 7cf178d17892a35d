"""Errors that a user sees: what is wrong, where, which limit, and what to do about it."""

from __future__ import annotations


class TteError(Exception):
    """A user-facing error; the command line prints it without a traceback and exits with status 2.

    Args:
        what: one sentence, what is wrong.
        where: file, operator, tensor or board concerned.
        limit: the limit that was passed, with its unit.
        remedy: what the user can do.
    """

    def __init__(self, what: str, *, where: str = "", limit: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.limit = limit
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.what if not self.where else f"{self.where}: {self.what}"]
        if self.limit:
            parts.append(f"limit: {self.limit}")
        if self.remedy:
            parts.append(f"remedy: {self.remedy}")
        return "\n  ".join(parts)


class ModelError(TteError):
    """The model file is corrupt, or holds something that cannot be run or trained."""


class BoardError(TteError):
    """An unknown board, a bad board file, or a plan that does not fit a board."""


class ToolchainError(TteError):
    """A compiler, PlatformIO or emulator is missing or failed."""


class DeviceError(TteError):
    """A device or emulator did not answer as it should."""


class DataError(TteError):
    """A data file is missing, corrupt, or has the wrong shape."""
