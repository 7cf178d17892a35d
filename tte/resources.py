"""Where the files beside the package lie: in a checkout beside `tte/`, in a wheel inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def path(name: str) -> Path:
    """The folder `name` ("boards", "templates", "firmware", "demo").

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    for candidate in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the installation lacks its folder {name!r}")
