"""tte: an int8 .tflite model becomes firmware that learns on a microcontroller."""

__version__ = "0.1.0"
