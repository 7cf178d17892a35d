"""From a forward graph to a training graph: head, scheme, differentiation."""
