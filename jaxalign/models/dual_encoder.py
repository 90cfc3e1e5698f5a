"""Two encoders into one space: CLIP (Radford et al., arXiv 2103.00020) and SigLIP (Zhai et al., arXiv 2303.15343)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxalign.errors import UserError

TOWERS = ("image", "text")


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """An encoder for images and one for texts; any two encoders serve, MLPs of features too.

    Parameters: {"image": ..., "text": ..., "log_scale": []}, and "bias": [] with an `initial_bias` (SigLIP). Scale and
    bias are those of the pairwise logits exp(log_scale) * cosine + bias; the losses apply them (and their limit), the
    towers do not know them.

    CLIP starts with scale 1 / 0.07 and has no bias, SigLIP with scale 10 and bias -10.

    Raises UserError: the two give embeddings of different sizes.
    """

    image: object  # an Encoder (`models.encoders`)
    text: object
    initial_scale: float = 1 / 0.07
    initial_bias: float | None = None

    def __post_init__(self):
        sizes = self.image.embedding_dim, self.text.embedding_dim
        if sizes[0] != sizes[1]:
            raise UserError(
                f"the image encoder gives embeddings of {sizes[0]} numbers, the text encoder of {sizes[1]}; "
                "set projection_dim (or out_dim) so that they agree"
            )

    @property
    def embedding_dim(self) -> int:
        """D of what either tower gives."""
        return self.image.embedding_dim

    def init(self, key) -> dict:
        """Random float32 parameters of both towers; scale and bias at their initial values."""
        keys = jax.random.split(key)
        params = {name: getattr(self, name).init(each) for name, each in zip(TOWERS, keys, strict=True)}
        return params | {name: jnp.asarray(value, jnp.float32) for name, value in self._scalars().items()}

    def abstract_params(self) -> dict:
        params = {name: getattr(self, name).abstract_params() for name in TOWERS}
        return params | {name: jax.ShapeDtypeStruct((), jnp.float32) for name in self._scalars()}

    def _scalars(self) -> dict[str, float]:
        found = {"log_scale": math.log(self.initial_scale)}
        return found if self.initial_bias is None else found | {"bias": self.initial_bias}

    def embed_image(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, D] of what the image encoder takes, not normalised."""
        return self.image.embed(params["image"], inputs, key=key)

    def embed_text(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, D] of what the text encoder takes, not normalised."""
        return self.text.embed(params["text"], inputs, key=key)

    def embed_pair(self, params, inputs, *, key=None) -> tuple[jax.Array, jax.Array]:
        """(image, text) embeddings [B, D] of inputs {"image": {...}, "text": {...}}."""
        keys = (None, None) if key is None else jax.random.split(key)
        return (
            self.embed_image(params, inputs["image"], key=keys[0]),
            self.embed_text(params, inputs["text"], key=keys[1]),
        )

    def embed(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, D] of inputs with either "images" or "tokens".

        Raises UserError: both or neither are there; `embed_image` and `embed_text` take any inputs.
        """
        if ("images" in inputs) == ("tokens" in inputs):
            raise UserError(
                f"a dual encoder embeds images or tokens, the inputs are {', '.join(sorted(inputs))}; "
                "call embed_image, embed_text or embed_pair"
            )
        return (self.embed_image if "images" in inputs else self.embed_text)(params, inputs, key=key)
