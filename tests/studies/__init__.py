"""Studies: what update schemes learn, beside each other and beside float training.

`keywords` and `activity` make the networks of two of them (a new speaker, a turned sensor): they train a small float network
with Keras, quantise it to an int8 .tflite and write the samples it is to adapt to; `making` holds what they share, and
fine-tunes the float network for comparison. They need TensorFlow (the extra `models`); features and splits need NumPy alone.
`floats` trains any model in float by the same scheme as the device, in NumPy. `table` puts schemes beside each other.

`powercut` counts what devices find after their power went; `fieldlife` follows one that learns, is cut off, learns on and
gives its model back.
"""
