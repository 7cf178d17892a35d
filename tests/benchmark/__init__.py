"""Instructions by operator and by model, counted in the emulator: `make bench`. It lives with the tests, whose model
builder it uses; what it measures stands in the folder `bench/`."""
