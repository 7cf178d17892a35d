"""Scripts by which Renode plays a board: `renode/NAME.resc` and, as a Robot test, `renode/NAME.robot`.

Renode could not be installed where this was written: the scripts were checked for syntax (tests/test_renode.py), never run.
Commands and keywords: https://renode.readthedocs.io/en/latest/basic/machines.html, .../host-integration/uart.html,
.../introduction/testing.html; platform files as in https://github.com/renode/renode/tree/master/platforms/cpus.
"""

from __future__ import annotations

import jinja2

from tte import resources
from tte.board import Board
from tte.device import exchange

PORT = 3456  # of the socket that is the serial port; `$port` in Renode chooses another
_FOLDER = "renode"


def files(board: Board, env: str, name: str, digest: str) -> dict[str, str]:
    """The scripts by their path in the project; none for a board whose file says nothing of Renode.

    Args:
        env: PlatformIO's environment of the board.
        name: the library's name, a C identifier.
        digest: the program's hash, which the test waits for: 16 hexadecimal digits.
    """
    if board.renode is None:
        return {}
    loader = jinja2.FileSystemLoader(resources.path("templates") / "renode")
    jinja = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    jinja.filters |= {"hex": "0x{:02X}".format, "pair": "{:02X}".format}
    values = {
        "name": name, "title": board.title, "env": env, "port": PORT, "vectors": board.flash_org,
        "platform": board.renode.platform, "uart": board.renode.uart, "overlay": board.renode.overlay,
        "request": describe_request(), "answer": digest.encode("ascii"),
    }  # fmt: skip
    kinds = ("resc", "robot", *(("repl",) if board.renode.overlay else ()))
    return {f"{_FOLDER}/{name}.{kind}": jinja.get_template(f"machine.{kind}.j2").render(values) for kind in kinds}


def describe_request() -> bytes:
    """The bytes that ask a device to describe itself."""
    return exchange.describe_request()
