"""`python -m tte`."""

from tte.cli import main

main()
