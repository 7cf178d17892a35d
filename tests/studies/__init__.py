"""Networks and data of two studies: a keyword network meets a new speaker, an activity network a turned sensor.

`keywords` and `activity` train a small float network with Keras, quantise it to an int8 .tflite and write the samples it
is to adapt to; `making` holds what they share, and fine-tunes the float network on those samples for comparison. They
need TensorFlow (the extra `models`); features and splits need NumPy alone.
"""
