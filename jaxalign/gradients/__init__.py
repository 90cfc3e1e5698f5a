"""How several gradients are made into one update."""
