"""What encoders by a chain of linear maps share: sizes, an activation between the maps, parameters."""

import dataclasses
import functools
import itertools
from typing import ClassVar

from flax import nnx

from jaxalign.models.encoder_layers import check_activation
from jaxalign.models.layers import Linear, Precision, default_precision


class LinearChain(nnx.Module):
    """`layer_0`, `layer_1`, ...: linear maps with biases between the sizes `dims`, of `reads` inputs side by side."""

    def __init__(self, dims: tuple[int, ...], reads: int, precision: Precision, rngs: nnx.Rngs):
        for number, (inside, outside) in enumerate(itertools.pairwise(dims)):
            setattr(self, f"layer_{number}", Linear(reads * inside, outside, precision, rngs, use_bias=True))


@functools.lru_cache(maxsize=32)
def _definition(dims: tuple[int, ...], reads: int, precision: Precision):
    whole = nnx.eval_shape(lambda: LinearChain(dims, reads, precision, nnx.Rngs(0)))
    return nnx.graphdef(whole), nnx.to_pure_dict(nnx.state(whole))


@dataclasses.dataclass(frozen=True)
class ChainEncoder:
    """in_dim -> *hidden_dims -> out_dim; `activation` (a key of `encoder_layers.ACTIVATIONS`) follows every map but the
    last.

    Raises UserError: an activation that is not known.
    """

    in_dim: int
    hidden_dims: tuple[int, ...]
    out_dim: int
    activation: str = "relu"
    compute_dtype: str = "float32"

    reads: ClassVar[int] = 1

    def __post_init__(self):
        check_activation(self.activation)

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes from input to output."""
        return (self.in_dim, *self.hidden_dims, self.out_dim)

    @property
    def precision(self) -> Precision:
        return default_precision(self.compute_dtype)

    @property
    def embedding_dim(self) -> int:
        """D of what `embed` gives."""
        return self.out_dim

    def init(self, key) -> dict:
        """Random float32 parameters: kernels of variance 1 / inputs, biases 0."""
        chain = LinearChain(self.dims, self.reads, self.precision, nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.state(chain))

    def abstract_params(self) -> dict:
        return _definition(self.dims, self.reads, self.precision)[1]

    def layers(self, params) -> list:
        """The maps, in order, as functions."""
        chain = nnx.merge(_definition(self.dims, self.reads, self.precision)[0], params)
        return [getattr(chain, f"layer_{number}") for number in range(len(self.dims) - 1)]
