"""What the output of a flash tool means: one sentence, and what to do about it.

The texts are those of OpenOCD 0.10 to 0.12, stlink 1.4 to 1.8, pyOCD 0.30 to 0.46 and picotool 1.0 to 2.x. Those for a missing
probe, a wrong serial number and a missing configuration file were seen by running OpenOCD 0.12.0, stlink 1.7.0 and pyOCD
0.46.0 without a probe; all others are from the tools' sources and bug reports, none from a board.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_AGAIN = "then run the same command again"
_RULES = {
    "openocd": "OpenOCD's 60-openocd.rules (its package installs them)",
    "pyocd": "https://pyocd.io/docs/installing#udev-rules-on-linux",
    "st-flash": "stlink's 49-stlinkv2*.rules (its package installs them)",
    "picotool": "https://github.com/raspberrypi/picotool/tree/master/udev",
}
_LIST = {"pyocd": "`pyocd list`", "st-flash": "`st-info --probe`", "picotool": "`picotool info -d`"}

# What only stands there once the flash is being erased or written.
_WRITING = re.compile(
    r"\*\* Programming Started \*\*|Flash page at|EraseFlash - |Starting Flash write|Starting Half page|"
    r"Loading into Flash|\[---\||\[=+"
)
_PLUG = "connect the board's probe by a USB cable that carries data"
_WIRES = "check the board's power and the probe's wires; press the board's reset button while the upload starts"


@dataclass(frozen=True)
class Failure:
    """What went wrong, with the state of the board, and what to do."""

    what: str
    remedy: str


# (pattern, what it means, remedy); the first that is found counts. `{rules}`: the tool's udev rules; `{list}`: what lists probes.
_MEANINGS = (
    (r"LIBUSB_ERROR_ACCESS|errno=13|Access denied|insufficient permissions|picotool was unable to connect|"
     r"Unable to access device|[Pp]ermission denied",
     "this user may not use the probe's USB device",
     "install the udev rules, {rules}; `sudo udevadm control --reload-rules`; unplug the probe and plug it in"),
    (r"LIBUSB_ERROR_BUSY|Resource busy|Unable to claim interface|Address already in use",
     "another program uses the probe", "end other debuggers and flash tools"),
    (r"More than one debug probe|Enter the number of the debug probe|requires a single RP\w* device|[Mm]ultiple (matching )?"
     r"(probes|devices)|found more than one",
     "several probes are connected", "name one by --serial ({list} shows them)"),
    (r"No connected debug probe|No available debug probe|No target device available|Couldn't find any ST-Link|"
     r"unable to find a matching CMSIS-DAP|No accessible RP\S* devices? in BOOTSEL mode|Error: open failed|"
     r"No device found|Failed to open or find the device|no device found",
     "no probe was found", "{plug}"),
    (r"[Vv]oltage .{0,40}too low|[Tt]arget voltage: 0?\.?0\d*\b",
     "the probe measures no supply voltage at the chip", "power the board; check its power jumpers and the VTref wire"),
    (r"Can't find (\S+\.cfg)", "OpenOCD lacks its file {found}", "install OpenOCD 0.11 or newer, with its scripts"),
    (r"Target type \S+ not recognized", "pyOCD does not know the chip",
     "`pyocd pack install NAME` with the name that stands behind `-t` in the command (see `tte flash --dry-run`)"),
    (r"UNEXPECTED idcode|expected 1 of 1|Cannot identify target|auto_probe failed|unknown chip id|Could not find chip id|"
     r"Cannot probe|device id .{0,20}not supported|family id.{0,40}(mismatch|not match)",
     "the chip is not the one that the build is for, or it answers nonsense",
     "check that the build's board is the one connected; {wires}"),
    (r"AP lock engaged|APPROTECT|write.protected|[Rr]eadout [Pp]rotection|RDP|Protected sector",
     "the chip's flash is protected", "lift the protection by the maker's tool, which erases the chip"),
    (r"addr too high|no flash bank found for address|no flash instance|not (with)?in (the )?flash|doesn't fit|does not fit|"
     r"exceeds? (the )?flash|outside of flash|No space left",
     "the program does not fit the chip's flash", "check that the build's board is the one connected"),
    (r"LIBUSB_ERROR_(NO_DEVICE|IO|PIPE|TIMEOUT)|No such device|[Dd]evice (was )?disconnected|Entity not found|"
     r"communication with .{0,30}failed|USB error",
     "the connection to the probe broke off", "plug the cable in again"),
    (r"[Vv]erif\w+ (\w+ )*[Ff]ailed|Verify Failed|checksum mismatch|contents differ",
     "what was read back is not what was written", "{wires}; try a shorter cable"),
    (r"unable to connect to the target|Error connecting DP|Failed to connect to target|Failed to enter SWD|No ACK|"
     r"timed out while waiting for target|[Tt]arget not halted|STLink error|Could not find MEM-AP|[Tt]ransfer (fault|error)|"
     r"Failed to halt|init mode failed",
     "the probe does not reach the chip", "{wires}"),
)  # fmt: skip


def is_writing(output: str) -> bool:
    """Whether the tool had begun to erase or write the flash."""
    return bool(_WRITING.search(output))


def state_of_board(output: str) -> str:
    """What the board holds after an upload that did not come to its end."""
    if is_writing(output):
        return "the board may hold half a program, which does not run; the upload can be repeated"
    return "nothing was written"


def explain(output: str, tool: str, serial: str | None) -> Failure:
    """What a failed upload's output means.

    Args:
        tool: the program that was run.
        serial: the probe that was asked for.
    """
    words = {"rules": _RULES.get(tool, "those of its maker"), "list": _LIST.get(tool, "the probe's label"), "wires": _WIRES}
    words["plug"] = "hold BOOTSEL while you plug the board in: it is then a drive named RPI-RP2" if tool == "picotool" else _PLUG
    if serial:
        words["plug"] += f"; check the serial number {serial} ({words['list']} shows what is there)"
    for pattern, what, remedy in _MEANINGS:
        found = re.search(pattern, output)
        if found:
            line = _line_at(output, found.start())
            what = what.format(found=found[1] if found.lastindex else "")
            if "no probe" in what and tool == "picotool":
                what = "no board in BOOTSEL mode was found"
            return Failure(f'{what} ("{line}"); {state_of_board(output)}', f"{remedy.format(**words)}; {_AGAIN}")
    last = "\n".join(line for line in output.strip().splitlines() if line.strip())[-1500:]
    if is_writing(output):
        return Failure(f"the upload broke off; {state_of_board(output)}:\n{last}", f"{_PLUG}; {_AGAIN}")
    return Failure(f"the upload failed; {state_of_board(output)}:\n{last}", f"see the tool's own words; {_AGAIN}")


def took_too_long(output: str, timeout_s: float) -> Failure:
    """For a tool that was ended because it did not."""
    return Failure(
        f"the upload took longer than {timeout_s:.0f} s and was ended; {state_of_board(output)}",
        f"unplug the probe and plug it in; {_AGAIN}",
    )


def _line_at(text: str, at: int) -> str:
    """The line round a character, as the tool wrote it, without what is invisible."""
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    line = re.sub(r"\x1b\[[0-9;]*m", "", text[start : end if end >= 0 else len(text)])
    return " ".join(line.split())[:200]
