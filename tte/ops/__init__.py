"""Operators: each a class with its shapes, integer semantics, gradient, cost and kernel (`tte.ops.base.Op`)."""
