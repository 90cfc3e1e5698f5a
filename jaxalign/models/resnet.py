"""A small convolutional classifier with batch normalisation, plain or residual, as pure functions.

Parameters and running statistics are two trees: whoever adapts a network at test time changes the first in part and
never the second. `ResNet.apply` says by `mode` which statistics normalise.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

Mode = Literal["train", "running", "batch"]
AxisName = str | tuple[str, ...] | None
NORMALISATION = r".*/norm/(scale|bias)"  # paths of the parameters that test-time adaptation changes


class Classified(NamedTuple):
    """What a classifier gives for a batch."""

    features: jax.Array  # [B, D]: what the last linear layer reads
    logits: jax.Array  # [B, C]
    statistics: Any  # the running statistics after this batch; in modes "running" and "batch" as they were


@dataclasses.dataclass(frozen=True)
class ResNet:
    """Convolutions 3 x 3 - flattened - linear - linear; each but the last is normalised and rectified.

    Stage s is one convolution to `widths[s]` channels, of stride 2 but in the first stage, and `blocks` residual blocks
    of two convolutions each; with 0 blocks this is a plain convolutional network.
    """

    image_shape: tuple[int, int, int]  # height, width, channels
    widths: tuple[int, ...] = (16, 32)
    blocks: int = 0
    feature_dim: int = 32
    classes: int = 10
    momentum: float = 0.9  # share of the old running statistics that a training batch leaves
    epsilon: float = 1e-5  # added to the variance

    def init(self, key: jax.Array) -> dict:
        """Kernels normal with variance 2 / inputs (He), scales 1, shifts 0."""
        shapes = self._kernel_shapes()
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))

        def layer(name, shape):
            inputs = 1
            for size in shape[:-1]:
                inputs *= size
            kernel = jax.random.normal(keys[name], shape) * (2 / inputs) ** 0.5
            zeros = jnp.zeros(shape[-1])
            if name == "head":
                return {"kernel": kernel, "bias": zeros}
            return {"kernel": kernel, "norm": {"scale": jnp.ones(shape[-1]), "bias": zeros}}

        return {name: layer(name, shape) for name, shape in shapes.items()}

    def abstract_params(self) -> dict:
        return jax.eval_shape(self.init, jax.random.key(0))

    def init_statistics(self) -> dict:
        """Mean 0 and variance 1 for every normalised layer."""
        return {
            name: {"mean": jnp.zeros(shape[-1]), "variance": jnp.ones(shape[-1])}
            for name, shape in self._kernel_shapes().items()
            if name != "head"
        }

    def apply(
        self,
        params: dict,
        statistics: dict,
        images: jax.Array,
        *,
        mode: Mode,
        valid: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> Classified:
        """Features and logits of `images` [B, H, W, C].

        Args:
          mode: "train" normalises by the batch and moves the running statistics, "running" normalises by those, "batch"
            by the batch alone. Variances are those of the batch itself (divided by its number of values).
          valid: [B], false for rows that are padding: they enter no statistics, whatever they hold.
          axis_name: axes of the mesh over which the batch is spread, inside `jax.shard_map`: the statistics are those
            of all of it. (Under plain `jit` a sharded batch needs nothing.)

        Raises ValueError: an unknown mode, images of another shape.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"unknown mode {mode!r}; choose one of {get_args(Mode)}")
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images have shape {images.shape[1:]}, the network takes {self.image_shape}")
        valid = jnp.ones(len(images), bool) if valid is None else valid != 0
        x = jnp.where(valid[:, None, None, None], images, 0)
        moved = {}

        def normalised(name, x):
            old = statistics[name]
            used = old if mode == "running" else _batch_statistics(x, valid, axis_name)
            moved[name] = (
                jax.tree.map(lambda a, b: self.momentum * a + (1 - self.momentum) * b, old, used)
                if mode == "train"
                else old
            )
            norm = params[name]["norm"]
            x = (x - used["mean"]) * jax.lax.rsqrt(used["variance"] + self.epsilon)
            return x * norm["scale"] + norm["bias"]

        def convolution(name, x, stride=1):
            x = jax.lax.conv_general_dilated(
                x, params[name]["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return normalised(name, x)

        for stage in range(len(self.widths)):
            x = jax.nn.relu(convolution(f"stage{stage}", x, stride=1 if stage == 0 else 2))
            for block in range(self.blocks):
                name = f"stage{stage}_block{block}"
                inner = jax.nn.relu(convolution(f"{name}a", x))
                x = jax.nn.relu(x + convolution(f"{name}b", inner))
        x = x.reshape(len(x), -1) @ params["features"]["kernel"]
        features = jax.nn.relu(normalised("features", x))
        logits = features @ params["head"]["kernel"] + params["head"]["bias"]
        return Classified(features, logits, moved)

    def _kernel_shapes(self) -> dict[str, tuple[int, ...]]:
        height, width, channels = self.image_shape
        shapes: dict[str, tuple[int, ...]] = {}
        for stage, wide in enumerate(self.widths):
            shapes[f"stage{stage}"] = (3, 3, channels, wide)
            channels = wide
            if stage:
                height, width = -(-height // 2), -(-width // 2)
            for block in range(self.blocks):
                for part in "ab":
                    shapes[f"stage{stage}_block{block}{part}"] = (3, 3, wide, wide)
        shapes["features"] = (height * width * channels, self.feature_dim)
        shapes["head"] = (self.feature_dim, self.classes)
        return shapes


def _batch_statistics(x: jax.Array, valid: jax.Array, axis_name: AxisName) -> dict[str, jax.Array]:
    """Mean and variance of each channel over the valid rows and all places; 0 and 0 without a valid row."""
    counts = valid.reshape(-1, *(1,) * (x.ndim - 1))
    axes = tuple(range(x.ndim - 1))
    places = x[0, ..., 0].size

    def mean(values):
        sums = jnp.sum(jnp.where(counts, values, 0), axes)
        number = places * jnp.sum(valid)
        if axis_name is not None:
            sums, number = jax.lax.psum((sums, number), axis_name)
        return sums / jnp.maximum(number, 1)

    centre = mean(x)
    # The second pass is taken about the mean: the difference of two large sums would lose the variance's digits.
    return {"mean": centre, "variance": mean((x - centre) ** 2)}
