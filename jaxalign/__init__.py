"""Alignment methods for JAX: pure losses, rewards and controllers, and one harness that trains with them.

Nothing is imported here, so that `import jaxalign` costs nothing; take what you need from its module,
for example `from jaxalign.losses.policy_gradient import policy_loss`.
"""

__version__ = "0.1.0"
