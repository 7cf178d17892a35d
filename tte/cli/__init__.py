"""The command line: every command is a few lines over the library."""

from tte.cli.main import main

__all__ = ["main"]
