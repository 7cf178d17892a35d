"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tte.errors import DataError


def write(path: Path, content: bytes) -> None:
    """Writes under a temporary name in the same folder, which is made if need be, then renames. Links are followed.

    Raises:
        DataError: the file cannot be written; nothing is left behind.
    """
    temporary, path = None, path.resolve()
    if path.exists() and not path.is_file():
        raise DataError("is no ordinary file, and is left as it is", where=str(path), remedy="another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # a temporary file is private; the result is an ordinary one
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        raise DataError(f"cannot be written ({error.strerror})", where=str(path)) from None
