"""The search for update schemes: which layers, biases and channels should learn."""
