"""In which precision matrix products are taken: float32 means float32."""

import jax
import jax.numpy as jnp


def product_precision(dtype: jax.typing.DTypeLike) -> jax.lax.Precision | None:
    """The `precision` argument of a product whose operands have `dtype`.

    Left to themselves GPUs round float32 operands to 10 bits (TF32) and TPUs to 7 (bfloat16). Who asks for float32 gets
    all 23, unless `jax_default_matmul_precision` is set, which then decides. Other types are as they are.
    """
    unset = jax.config.jax_default_matmul_precision is None
    return jax.lax.Precision.HIGHEST if unset and jnp.dtype(dtype) == jnp.float32 else None
