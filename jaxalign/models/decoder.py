"""Decoder-only transformers (Llama, SmolLM2, Qwen2/2.5, Qwen3, Gemma 3) behind pure functions.

`Transformer` is the Flax NNX module. `Decoder` splits it once into a static definition and a parameter tree and offers
what everybody else uses: `apply`-like functions of `(params, arrays)`. Training scans one block over stacked layers
with rematerialisation; decoding unrolls the layers so that each cache is updated in place. Both run the same `Block`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import UserError
from jaxalign.models.attention import attention, cached_attention, cudnn_obstacle, to_cache, visibility
from jaxalign.models.config import DecoderConfig
from jaxalign.models.layers import AdaptedKernel, Block, Precision, RMSNorm, default_precision, rope_turns
from jaxalign.models.tpu_attention import MIN_LENGTH, flash_attention, flash_obstacle
from jaxalign.placement import spread_looked_up, spread_rows

REMAT_POLICIES = {
    "none": None,  # keep everything
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer inputs only; also the fastest on a CPU
    "products": jax.checkpoint_policies.save_only_these_names("product"),  # keep the products with weights
}

ATTENTION = ("auto", "xla", "cudnn", "flash_tpu")


class Table(nnx.Module):
    """A [vocabulary, dim] table: token embeddings, or the rows of an untied head."""

    def __init__(self, name, config: DecoderConfig, rngs):
        setattr(self, name, nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.embed_dim)) * 0.02))


class Transformer(nnx.Module):
    def __init__(self, config: DecoderConfig, precision: Precision, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs):
            return Block(config, precision, rngs)

        self.embed = Table("embedding", config, rngs)
        self.layers = stacked(rngs)
        self.final_norm = RMSNorm(config.embed_dim, config)
        if not config.tie_embeddings:
            self.head = Table("kernel", config, rngs)


@functools.lru_cache(maxsize=32)
def _definition(config: DecoderConfig, precision: Precision):
    """(graph definitions of the whole module and of one block, abstract parameter tree)."""
    whole = nnx.eval_shape(lambda: Transformer(config, precision, nnx.Rngs(0)))
    block = nnx.eval_shape(lambda: Block(config, precision, nnx.Rngs(0)))
    norm = nnx.eval_shape(lambda: RMSNorm(config.embed_dim, config))
    return nnx.graphdef(block), nnx.graphdef(norm), nnx.to_pure_dict(nnx.state(whole))


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Static and hashable. `remat` is a key of REMAT_POLICIES; `attention` is one of ATTENTION.

    "auto" takes what serves at hand: "cudnn" in half precision on NVIDIA GPUs (see `cudnn_obstacle`); on a single TPU
    device "flash_tpu" for rows of 1024 tokens or more that it serves (see `flash_obstacle`); else "xla". A kernel asked
    for by name where it cannot serve raises UserError.
    """

    config: DecoderConfig
    compute_dtype: str = "bfloat16"
    activation_dtype: str | None = None  # None: chosen for the backend
    remat: str = "full"
    attention: str = "auto"

    position_axis = 2  # of the cache's arrays; not a field

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"model.remat={self.remat!r} is not known; use one of {', '.join(REMAT_POLICIES)}")
        if self.attention not in ATTENTION:
            raise UserError(f"model.attention={self.attention!r} is not known; use one of {', '.join(ATTENTION)}")

    @property
    def precision(self) -> Precision:
        if self.activation_dtype is None:
            return default_precision(self.compute_dtype)
        return Precision(self.compute_dtype, self.activation_dtype)

    def _attention_implementation(self, length: int, parents) -> str:
        obstacles = {
            "flash_tpu": flash_obstacle(self.config, length, parents),
            "cudnn": cudnn_obstacle(self.config.head_dim, length, self.precision),
            "xla": None,
        }
        if self.attention != "auto":
            if obstacles[self.attention] is not None:
                raise UserError(f"model.attention={self.attention!r} cannot serve: {obstacles[self.attention]}")
            return self.attention
        if length < MIN_LENGTH:
            del obstacles["flash_tpu"]  # dense scores are small there
        return next(name for name, obstacle in obstacles.items() if obstacle is None)

    def init(self, key) -> dict:
        """Random float32 parameters; use under `jax.jit` with `out_shardings` to be born sharded."""
        return nnx.to_pure_dict(nnx.state(Transformer(self.config, self.precision, nnx.Rngs(params=key))))

    def abstract_params(self) -> dict:
        return _definition(self.config, self.precision)[2]

    def head(self, params):
        """The [V, D] table whose product with hidden states gives logits."""
        return params["embed"]["embedding"] if self.config.tie_embeddings else params["head"]["kernel"]

    def _block(self, layer_params):
        return nnx.merge(_definition(self.config, self.precision)[0], layer_params)

    def _final_norm(self, params, x):
        return nnx.merge(_definition(self.config, self.precision)[1], params["final_norm"])(x)

    def _embed(self, params, tokens):
        x = spread_looked_up(params["embed"]["embedding"][tokens].astype(self.precision.activation))
        x = spread_rows(x)
        return x * jnp.asarray(self.config.embed_dim**0.5, x.dtype) if self.config.embed_scale else x

    def _turns(self, positions):
        """Rotary turns of (global, sliding) layers."""
        return rope_turns(positions, self.config), rope_turns(positions, self.config, local=True)

    def _scan(self, params, tokens, positions, segments, parents, *, keep_cache: bool, remat: str):
        """All layers over whole rows: hidden states and, if asked, the stacked keys and values [L, B, KV, T, d]."""
        config = self.config
        everywhere = visibility(segments, parents)
        window = config.sliding_window
        nearby = everywhere if window is None else visibility(segments, parents, positions=positions, window=window)
        turns, local_turns = self._turns(positions)
        sliding = jnp.array([config.is_sliding(layer) for layer in range(config.num_layers)])
        precision, implementation = self.precision, self._attention_implementation(tokens.shape[1], parents)

        def layer(x, inputs):
            layer_params, slides = inputs
            kept = {}

            def attend(query, key, value):
                if keep_cache:
                    kept.update(
                        key=to_cache(key, precision).swapaxes(1, 2), value=to_cache(value, precision).swapaxes(1, 2)
                    )
                if implementation == "flash_tpu":
                    return flash_attention(
                        query, key, value, segments, scale=config.attention_scale, precision=precision
                    )
                visible = everywhere if window is None else jnp.where(slides, nearby, everywhere)
                return attention(
                    query,
                    key,
                    value,
                    visible,
                    scale=config.attention_scale,
                    precision=precision,
                    implementation=implementation,
                )

            layer_turns = turns if window is None else jnp.where(slides, local_turns, turns)
            return spread_rows(self._block(layer_params)(x, layer_turns, attend)), kept

        if remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
        x, kept = jax.lax.scan(layer, self._embed(params, tokens), (params["layers"], sliding))
        return self._final_norm(params, x), kept

    def hidden(self, params, tokens, positions, segments, parents=None):
        """Hidden states [B, T, D] after the final norm; all arguments [B, T] integers (see `models.attention`)."""
        return self._scan(params, tokens, positions, segments, parents, keep_cache=False, remat=self.remat)[0]

    def decode_params(self, params) -> dict:
        """What decoding reads, prepared once per rollout: compute dtype, one tree per layer, the head."""

        def prepared(leaf):
            if isinstance(leaf, AdaptedKernel):
                return leaf.merged(self.compute_dtype)
            return leaf.astype(self.compute_dtype) if leaf.ndim >= 2 else leaf

        def cast(tree):
            return jax.tree.map(prepared, tree, is_leaf=lambda leaf: isinstance(leaf, AdaptedKernel))

        layers = [cast(jax.tree.map(lambda a, i=i: a[i], params["layers"])) for i in range(self.config.num_layers)]
        return {"params": params, "layers": layers, "head": cast(self.head(params))}

    def prefill(self, decode_params, tokens, lengths, capacity: int):
        """Run right-padded prompts [B, S] of `lengths` [B]; room for `capacity` tokens a row.

        Returns the hidden state [B, D] at each last prompt token and the cache: per layer {"key", "value"}
        [B, KV, capacity, head_dim]. Cache index equals position.
        """
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        segments = (positions < lengths[:, None]).astype(jnp.int32)
        hidden, kept = self._scan(
            decode_params["params"], tokens, positions, segments, None, keep_cache=True, remat="none"
        )
        room = ((0, 0), (0, 0), (0, 0), (0, capacity - length), (0, 0))
        kept = jax.tree.map(lambda a: jnp.pad(a, room), kept)
        cache = [jax.tree.map(lambda a, i=i: a[i], kept) for i in range(self.config.num_layers)]
        return hidden[jnp.arange(batch), lengths - 1], cache

    def decode(self, decode_params, tokens, positions, cache):
        """One token a row: tokens, positions [B] -> hidden [B, D] and the cache with keys and values written there."""
        config = self.config
        rows = jnp.arange(tokens.shape[0])
        index = jnp.arange(cache[0]["key"].shape[self.position_axis])
        everywhere = index[None] <= positions[:, None]
        nearby = everywhere
        if config.sliding_window is not None:
            nearby = everywhere & (positions[:, None] - index[None] < config.sliding_window)
        turns, local_turns = self._turns(positions[:, None])
        x = self._embed(decode_params["params"], tokens[:, None])
        new_cache = []
        for i, (layer_params, old) in enumerate(zip(decode_params["layers"], cache, strict=True)):
            slides = config.is_sliding(i)

            def attend(query, key, value, old=old, slides=slides):
                new = {
                    "key": old["key"].at[rows, :, positions].set(to_cache(key[:, 0], self.precision)),
                    "value": old["value"].at[rows, :, positions].set(to_cache(value[:, 0], self.precision)),
                }
                new_cache.append(new)
                visible = nearby if slides else everywhere
                return cached_attention(
                    query, new["key"], new["value"], visible, scale=config.attention_scale, precision=self.precision
                )

            x = spread_rows(self._block(layer_params)(x, local_turns if slides else turns, attend))
        return self._final_norm(decode_params["params"], x)[:, 0], new_cache

    def decode_logits(self, decode_params, hidden):
        """float32 logits [B, V] of hidden [B, D]."""
        head = decode_params["head"]
        product = functools.partial(jnp.einsum, precision=self.precision.products, preferred_element_type=jnp.float32)
        return product("bd,vd->bv", hidden.astype(head.dtype), head)
