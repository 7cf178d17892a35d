"""For the environments with PlatformIO's official platforms: what those leave out when no framework is given."""

Import("env")  # noqa: F821 - PlatformIO defines it

machine = ["-mfloat-abi=soft"]
env.Append(ASFLAGS=machine, CCFLAGS=machine, LINKFLAGS=[*machine, "-nostartfiles"])  # noqa: F821
if env.PioPlatform().name == "ststm32":  # noqa: F821 - nordicnrf52 gives both itself, and twice is an error
    env.Append(LINKFLAGS=["--specs=nano.specs", "--specs=nosys.specs"])  # noqa: F821
