"""Talking to a program that runs: on a board, in an emulator, or on this computer."""
