"""The two programs for this computer: the device's own code, and its portable twin."""

from __future__ import annotations

from pathlib import Path

from toy import TOY, needs_host

from tte import board, native, pioproject
from tte.device import session

_OWN, _TWIN = "0123456789abcdef", "fedcba9876543210"


@needs_host
def test_the_fast_program_is_the_portable_twin(tmp_path: Path) -> None:
    """Where a portable library is kept, the fast program is made of it; the checked one never is."""
    project = pioproject.generate_project(tmp_path / "p", TOY, board.load("stm32f746"), name="toy")
    twin = {path: content.decode().replace(_OWN, _TWIN) for path, content in TOY.items()}

    def hashes() -> list[str]:
        found = []
        for sanitize in (True, False):
            with session.open_host(native.build_host(project, sanitize=sanitize)) as device:
                found.append(device.describe().hash)
        return found

    assert hashes() == [_OWN, _OWN]
    native.keep_portable(project.folder, {**twin, "src/old.c": "#error old\n"})
    native.keep_portable(project.folder, twin)
    assert hashes() == [_OWN, _TWIN]
    native.keep_portable(project.folder, None)
    assert not (project.folder / native.PORTABLE).exists()
    assert hashes() == [_OWN, _OWN]
