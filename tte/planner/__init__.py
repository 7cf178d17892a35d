"""Order of steps, addresses of tensors, and an independent proof of both."""
