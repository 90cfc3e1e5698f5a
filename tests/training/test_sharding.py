import math

import jax
import jax.numpy as jnp
import pytest

from jaxalign.errors import UserError
from jaxalign.models.config import DecoderConfig
from jaxalign.models.decoder import Decoder
from jaxalign.models.dual_encoder import DualEncoder
from jaxalign.models.mlp_encoder import MlpEncoder
from jaxalign.training.mesh import make_mesh
from jaxalign.training.sharding import (
    DECODER_RULES,
    DUAL_ENCODER_RULES,
    IMAGE_ENCODER_RULES,
    MLP_ENCODER_RULES,
    TEXT_ENCODER_RULES,
    Rule,
    dual_rules,
    path_name,
    shardings_for,
    state_shardings,
)
from jaxalign.training.state import abstract_state
from tests.models import tiny_encoders
from tests.training import toy

P = jax.sharding.PartitionSpec


def shape(*dimensions):
    return jax.ShapeDtypeStruct(dimensions, jnp.float32)


def decoder(**changes):
    sizes = {
        "vocab_size": 64,
        "num_layers": 2,
        "embed_dim": 16,
        "mlp_dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 32,
    }
    return Decoder(DecoderConfig(**sizes | changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": False}, {"qkv_bias": True}, {"qk_norm": True}, {"post_norms": True}],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_the_decoder_table_covers_every_model(changes):
    """Every kernel and table is split over fsdp and tensor; pieces are a fourth; small vectors are whole."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = decoder(**changes).abstract_params()
    shardings = shardings_for(params, DECODER_RULES, mesh)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    ):
        name = path_name(path)
        pieces = 1 if name.endswith("scale") else 2 if name.endswith("bias") else 4
        assert leaf.size == pieces * math.prod(sharding.shard_shape(leaf.shape)), name
        if name.startswith("layers/"):
            assert sharding.shard_shape(leaf.shape)[0] == 2, "the scan walks along the layers"


def test_an_uncovered_parameter_is_named():
    params = decoder().abstract_params() | {"adapter": {"kernel": shape(4, 4)}}
    with pytest.raises(UserError, match=r"no sharding rule covers the parameter adapter/kernel of shape \(4, 4\)"):
        shardings_for(params, DECODER_RULES, make_mesh())


def test_a_rule_must_match_the_whole_path():
    with pytest.raises(UserError, match="covers the parameter a/kernel"):
        shardings_for({"a": {"kernel": shape(4)}}, [Rule("kernel", P())], make_mesh())


def test_an_idle_rule_is_named_unless_optional():
    tree = {"w": shape(4)}
    with pytest.raises(UserError, match="'wq' matches no parameter"):
        shardings_for(tree, [Rule("w", P()), Rule("wq", P())], make_mesh())
    shardings_for(tree, [Rule("w", P()), Rule("wq", P(), optional=True)], make_mesh())


def test_the_first_matching_rule_decides_and_a_hidden_one_is_idle():
    mesh = make_mesh(data=1, fsdp=8)
    tree = {"w": shape(8), "v": shape(8)}
    shardings = shardings_for(tree, [Rule("w", P("fsdp")), Rule(".", P())], mesh)
    assert shardings["w"].spec == P("fsdp")
    assert shardings["v"].spec == P()
    with pytest.raises(UserError, match="'w' matches no parameter"):
        shardings_for(tree, [Rule(".", P()), Rule("w", P("fsdp"))], mesh)


def test_an_axis_that_does_not_divide_is_dropped_with_a_warning():
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    with pytest.warns(UserWarning, match=r"w: a dimension of 6 does not divide over mesh axis 'fsdp' of size 4"):
        sharding = shardings_for({"w": shape(6, 4)}, [Rule("w", P("fsdp", "tensor"))], mesh)["w"]
    assert sharding.spec == P(None, "tensor")
    assert shardings_for({"w": shape(8)}, [Rule("w", P(("fsdp", "tensor")))], mesh)["w"].shard_shape((8,)) == (1,)


def test_rules_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="names the mesh axis 'model'; the mesh has data, fsdp, tensor"):
        shardings_for({"w": shape(4)}, [Rule("w", P("model"))], make_mesh())
    with pytest.raises(UserError, match="names 2 dimensions"):
        shardings_for({"w": shape(4)}, [Rule("w", P(None, "fsdp"))], make_mesh())


def test_moments_and_averages_lie_where_their_parameters_lie():
    mesh = make_mesh(data=1, fsdp=8)
    params = jax.eval_shape(toy.params)
    rules = [Rule(r"embed/embedding", P("fsdp")), Rule(r".*/kernel", P(None, None, "fsdp")), Rule(r".*/scale", P())]
    shardings = shardings_for(params, rules, mesh)
    extra = {"average": params, "embed": {"embedding": shape(3)}, "count": shape()}
    state = abstract_state(params, toy.optimizer(), jax.random.key(0), extra)
    layout = state_shardings(state, shardings, mesh)
    assert layout.params == layout.extra["average"] == shardings
    adam = layout.opt_state[1]
    assert adam.mu == adam.nu == shardings
    assert adam.count.spec == layout.step.spec == layout.key.spec == layout.extra["count"].spec == P()
    assert layout.extra["embed"]["embedding"].spec == P(), "the same path with another shape is not a parameter's"


ENCODERS = {
    **{f"text {name}": (tiny_encoders.text_encoder(name), TEXT_ENCODER_RULES) for name in tiny_encoders.TEXT},
    **{f"image {name}": (tiny_encoders.image_encoder(name), IMAGE_ENCODER_RULES) for name in tiny_encoders.IMAGE},
    **{f"dual {name}": (tiny_encoders.dual_encoder(name), DUAL_ENCODER_RULES) for name in ("clip", "siglip")},
    "mlp": (MlpEncoder(8, (16, 16), 4), MLP_ENCODER_RULES),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_encoder_tables_cover_every_encoder(name):
    """Every kernel and table is split, kernels of the layers over fsdp and tensor; the scan's axis never is."""
    encoder, rules = ENCODERS[name]
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = encoder.abstract_params()
    shardings = shardings_for(params, rules, mesh)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    ):
        path, shard = path_name(path), sharding.shard_shape(leaf.shape)
        pieces = leaf.size // math.prod(shard)
        if "layers/" in path:
            assert shard[0] == 2
        if "norm/" in path or path.endswith(("class_token", "probe", "log_scale", "bias")):
            assert pieces <= 2, path
        else:
            whole = path.endswith(("positions", "types", "patches/kernel", "projection/kernel"))
            assert pieces == (2 if whole else 4), path


def test_a_dual_encoder_of_other_towers():
    tower = MlpEncoder(8, (16,), 4)
    params = DualEncoder(image=tower, text=tower).abstract_params()
    layout = shardings_for(
        params, dual_rules(MLP_ENCODER_RULES, MLP_ENCODER_RULES), make_mesh(fsdp=2, tensor=2, data=2)
    )
    assert layout["text"]["layer_1"]["kernel"].spec == P("fsdp", "tensor")
    with pytest.raises(UserError, match="covers the parameter image/layer_0/bias"):
        shardings_for(params, DUAL_ENCODER_RULES, make_mesh())
