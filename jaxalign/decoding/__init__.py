"""How text is produced: next-token distribution, stop strings inside jit, the sampler."""
