"""PlatformIO platform `tte-cortexm`: takes the compiler from the PATH, and from PlatformIO's registry only if none is there."""

import shutil

from platformio.public import PlatformBase

COMPILER_PACKAGE = "toolchain-gccarmnoneeabi"


class TtecortexmPlatform(PlatformBase):
    """The class's name is the platform's, as PlatformIO demands: `tte-cortexm` without the dash."""

    def configure_default_packages(self, variables, targets):
        if shutil.which("arm-none-eabi-gcc"):
            self.packages.pop(COMPILER_PACKAGE, None)  # neither looked for nor fetched
        else:
            self.packages[COMPILER_PACKAGE]["optional"] = False
        return super().configure_default_packages(variables, targets)
