"""Build script of the platform `tte-cortexm` (run by SCons inside PlatformIO)."""

import json
import os
import sys

from SCons.Script import COMMAND_LINE_TARGETS, AlwaysBuild, Builder, Default, DefaultEnvironment

env = DefaultEnvironment()
board = env.BoardConfig()

PREFIX = "arm-none-eabi-"
# Soft float on every core: the programs are integer only, and whatever is not shows as a call of a float routine.
MACHINE = ["-mcpu=" + board.get("build.cpu"), "-mthumb", "-mfloat-abi=soft"]

env.Replace(
    PROGNAME="firmware",
    PROGSUFFIX=".elf",
    ARFLAGS=["rc"],
    CC=PREFIX + "gcc",
    CXX=PREFIX + "g++",
    AS=PREFIX + "gcc",
    LINK=PREFIX + "gcc",
    AR=PREFIX + "gcc-ar",
    RANLIB=PREFIX + "gcc-ranlib",
    OBJCOPY=PREFIX + "objcopy",
    SIZETOOL=PREFIX + "size",
    SIZEPRINTCMD="$SIZETOOL -A -d $SOURCES",
)
env.Append(
    ASFLAGS=MACHINE,
    ASPPFLAGS=["-x", "assembler-with-cpp"],
    # -fcallgraph-info=su: the call graph with stack use, from which tte computes the stack's bound; functions that are
    # folded into equal ones (-fipa-icf) would be missing in it
    CCFLAGS=MACHINE + ["-ffunction-sections", "-fdata-sections", "-fcallgraph-info=su", "-fno-ipa-icf"],
    LINKFLAGS=MACHINE + ["-nostdlib", "--specs=nano.specs", "-Wl,--gc-sections"],
    LIBS=["c", "gcc"],
)


def objcopy(form, suffix):
    action = env.VerboseAction(f"$OBJCOPY -O {form} $SOURCES $TARGET", "Building $TARGET")
    return Builder(action=action, suffix=suffix)


FORMS = {"ElfToBin": ("binary", ".bin"), "ElfToHex": ("ihex", ".hex")}
# Flash that keeps what was learnt lies between the vectors and the program: tools that write a gap get it in two parts.
program_address = board.get("upload.program_address", "")
if program_address:
    FORMS["ElfToHead"] = ("binary -j .boot2 -j .vectors", "_head.bin")
    FORMS["ElfToRest"] = ("binary -R .boot2 -R .vectors", "_rest.bin")
env.Append(BUILDERS={name: objcopy(*form) for name, form in FORMS.items()})
program = os.path.join("$BUILD_DIR", "${PROGNAME}")
if "nobuild" in COMMAND_LINE_TARGETS:
    elf, images = program + ".elf", [program + suffix for _, suffix in FORMS.values()]
else:
    elf = env.BuildProgram()
    env.Depends(elf, os.path.abspath(env.subst("$LDSCRIPT_PATH")))
    images = [getattr(env, name)(program + suffix, elf) for name, (_, suffix) in FORMS.items()]
AlwaysBuild(env.Alias("nobuild", images))
env.Alias("buildprog", [elf, images])
env.AddPlatformTarget("size", elf, env.VerboseAction("$SIZEPRINTCMD", "Sizes of $SOURCE"), "Program size")

# `tte flash` chooses by TTE_UPLOAD_PROTOCOL; `upload_command` in platformio.ini overrides any protocol
protocol = os.environ.get("TTE_UPLOAD_PROTOCOL") or env.subst("$UPLOAD_PROTOCOL")
if "upload" in COMMAND_LINE_TARGETS:
    with open(os.path.join(env.PioPlatform().get_dir(), "uploaders.json"), encoding="utf-8") as file:
        uploaders = json.load(file)
    source = elf
    if protocol in uploaders:
        uploader = uploaders[protocol]
        source = elf if uploader["image"].endswith(".elf") else images[0]
        serial = env.subst("$UPLOAD_PORT")
        values = {**board.get("upload"), "file": "$SOURCE", "probe": uploader["probe"].format(serial=serial) if serial else ""}
        command = uploader["command"]
        if program_address and "parts" in uploader:
            command = uploader["parts"]
            values |= {"head": os.path.join("$BUILD_DIR", "firmware_head.bin"), "rest": os.path.join("$BUILD_DIR", "firmware_rest.bin")}
            env.Depends("upload", images)
        env.Replace(UPLOAD_PROTOCOL=protocol)
        env.Replace(UPLOADCMD=command.format(**values))
    elif protocol != "custom":
        sys.stderr.write(f"Error: no way to upload by {protocol!r}; choose from {', '.join(sorted(uploaders))}\n")
        env.Exit(1)
    env.AddPlatformTarget("upload", source, [env.VerboseAction("$UPLOADCMD", "Uploading $SOURCE")], "Upload")

Default([env.Alias("buildprog")])
