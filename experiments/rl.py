"""Group-relative policy-gradient training of a decoder on questions with a checkable answer.

One step: take prompts, sample a group of completions for each, reward them, turn rewards into advantages, and make
`rl.epochs` x `rl.batches_per_epoch` updates on them. What a paper changes is a setting of `jaxalign.methods` (how
advantages are made, how the ratio is taken and clipped, how tokens are summed), never this file.
"""
