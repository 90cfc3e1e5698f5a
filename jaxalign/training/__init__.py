"""How a step happens, anywhere: state, step, sharding, checkpoints, loop, logging."""
