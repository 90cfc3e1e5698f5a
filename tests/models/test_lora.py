"""Adapters beside a base: values and gradients against plain formulas, merging, targets, sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.decoder import Decoder
from jaxalign.models.fingerprint import fingerprint
from jaxalign.models.layers import AdaptedKernel, Precision
from jaxalign.models.lora import LoraConfig
from jaxalign.objective import Objective
from jaxalign.training.mesh import make_mesh, put_batch
from jaxalign.training.sharding import ADAPTER_RULES, DECODER_RULES, path_name, shardings_for, state_shardings
from jaxalign.training.state import abstract_state, create_state
from jaxalign.training.step import make_train_step
from tests.compiled import compiled
from tests.models import tiny

delta_norms = compiled(lora.delta_norms)
FLOAT32 = Precision("float32", "float32")
CONFIGS = {
    "lora": LoraConfig(rank=2, alpha=6.0),
    "rslora": LoraConfig(rank=4, alpha=6.0, rank_scaled=True, targets=(r"layers/attention/(query|value)",)),
    "dora": LoraConfig(kind="dora", rank=2, alpha=6.0),
}


@pytest.fixture(scope="module")
def decoder():
    return tiny.decoder("qwen2")


@pytest.fixture(scope="module")
def base(decoder):
    return tiny.random_params(decoder)


@pytest.fixture(scope="module")
def row():
    return tiny.plain_row(np.random.default_rng(4).integers(0, 97, (8, 9)))


def trained(base, config, seed=0):
    """An adapter away from its start: every leaf random, magnitudes around 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "magnitude") + 0.15 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, lora.abstract_adapter(base, config))


def plain_kernel(kernel, parts, config, module):
    """The adapted kernel [L, in, out] in float64, written from the formula."""
    rank, alpha = config.rank_and_alpha(module)
    scale = alpha / np.sqrt(rank) if config.rank_scaled else alpha / rank
    a, b = np.asarray(parts["lora_a"], np.float64), np.asarray(parts["lora_b"], np.float64)
    whole = np.asarray(kernel, np.float64) + scale * np.stack([one @ other for one, other in zip(a, b, strict=True)])
    if config.kind == "dora":
        lengths = np.sqrt((whole**2).sum(axis=1, keepdims=True))
        whole = np.asarray(parts["magnitude"], np.float64)[:, None] * whole / lengths
    return whole


@pytest.mark.parametrize("name", CONFIGS)
def test_attached_equals_merged_equals_the_formula(name, decoder, base, row):
    config = CONFIGS[name]
    adapter = trained(base, config)
    modules = lora.target_modules(base, config)
    assert len(modules) == (2 if name == "rslora" else 7)
    expected = jax.tree_util.tree_map_with_path(lambda _, leaf: leaf, base)
    for module, kernel in modules.items():
        *folders, last = module.split("/")
        node = functools.reduce(lambda tree, folder: tree[folder], folders, expected)
        parts = lora.adapter_modules(adapter)[module]
        node[last]["kernel"] = np.float32(plain_kernel(kernel, parts, config, module))
    merged = lora.merge(base, adapter, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), merged, expected)
    wanted = np.asarray(tiny.hidden(decoder, expected, *row))
    attached = lora.attach(base, adapter, config)
    np.testing.assert_allclose(tiny.hidden(decoder, attached, *row), wanted, atol=5e-5)
    assert np.abs(wanted - np.asarray(tiny.hidden(decoder, base, *row))).max() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_adapter_is_its_base(name, decoder, base, row):
    adapter = lora.init_adapter(jax.random.key(1), base, CONFIGS[name])
    attached = tiny.hidden(decoder, lora.attach(base, adapter, CONFIGS[name]), *row)
    expected = tiny.hidden(decoder, base, *row)
    if name == "dora":  # its norm is computed by two programs
        np.testing.assert_allclose(attached, expected, atol=2e-5)
    else:
        np.testing.assert_array_equal(attached, expected)


def test_the_first_factor_is_uniform_within_the_inverse_root_of_its_inputs(base):
    adapter = lora.init_adapter(jax.random.key(1), base, LoraConfig(rank=16, targets=(r"layers/mlp/.*",)))
    for module, parts in lora.adapter_modules(adapter).items():
        bound = lora.target_modules(base, LoraConfig())[module].shape[1] ** -0.5
        a, b = (np.asarray(parts[name]) for name in ("lora_a", "lora_b"))
        assert 0.95 * bound < np.abs(a).max() < bound
        np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.1)
        assert not b.any()


def test_factors_do_not_depend_on_what_else_is_adapted(base):
    few = lora.init_adapter(jax.random.key(1), base, CONFIGS["rslora"])
    many = lora.init_adapter(jax.random.key(1), base, LoraConfig(rank=4))
    few, many = (tree["layers"]["attention"]["value"]["lora_a"] for tree in (few, many))
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradients_of_one_kernel_equal_the_formula(kind):
    """dB = s (x A)^T dy, dA = s x^T (dy B^T); for DoRA with dy * m / ||V|| for dy, the norm being constant."""
    rng = np.random.default_rng(0)
    x, w, a, b = (rng.normal(size=size).astype(np.float32) for size in ((5, 6), (6, 4), (6, 2), (2, 4)))
    m, dy = rng.normal(size=4).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    scale = 1.5
    config = LoraConfig(kind=kind, rank=2, alpha=3.0, targets=(r"layers/one",))
    base = {"layers": {"one": {"kernel": w[None]}}}

    def total(leaf, x):
        adapter = {"layers": {"one": {name: array[None] for name, array in leaf.items()}}}
        stacked = lora.attach(base, adapter, config)["layers"]["one"]["kernel"]
        one = jax.tree.map(lambda array: array[0], stacked)
        return jnp.sum(one.product(x, FLOAT32) * dy)

    leaf = {"lora_a": a, "lora_b": b} | ({"magnitude": m} if kind == "dora" else {})
    found, d_x = jax.jit(jax.grad(total, argnums=(0, 1)))(leaf, x)
    v = w + scale * a @ b
    gain = m / np.sqrt((v**2).sum(axis=0)) if kind == "dora" else np.ones(4, np.float32)
    np.testing.assert_allclose(found["lora_b"], scale * (x @ a).T @ (dy * gain), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(found["lora_a"], scale * x.T @ ((dy * gain) @ b.T), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(d_x, (dy * gain) @ v.T, rtol=2e-5, atol=1e-5)
    if kind == "dora":
        expected = ((x @ v) * dy).sum(axis=0) / np.sqrt((v**2).sum(axis=0))
        np.testing.assert_allclose(found["magnitude"], expected, rtol=2e-5, atol=1e-5)


def test_merging_leaves_the_base_as_it_was_and_keeps_dtypes(base):
    before = jax.tree.map(lambda leaf: np.array(leaf), base)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), before)
    adapter = trained(base, CONFIGS["lora"])
    exact = lora.merge(jax.tree.map(lambda leaf: leaf.astype(np.float32), half), adapter, CONFIGS["lora"])
    lora.merge(base, adapter, CONFIGS["lora"])
    jax.tree.map(np.testing.assert_array_equal, base, before)
    merged = lora.merge(half, adapter, CONFIGS["lora"])
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), exact)
    jax.tree.map(np.testing.assert_array_equal, merged, rounded)  # rounded once


def test_decoding_with_an_adapter_equals_the_whole_row(decoder, base):
    params = lora.attach(base, trained(base, CONFIGS["dora"]), CONFIGS["dora"])
    tokens = np.random.default_rng(2).integers(0, 97, (2, 8))
    lengths = np.array([5, 3])
    whole = np.asarray(tiny.hidden(decoder, params, *tiny.plain_row(tokens)))
    prepared = decoder.decode_params(params)
    hidden, cache = tiny.prefill(decoder, prepared, tokens[:, :6], lengths, 8)
    rows = np.arange(2)
    np.testing.assert_allclose(hidden, whole[rows, lengths - 1], atol=5e-5)
    hidden, _ = tiny.decode(decoder, prepared, tokens[rows, lengths], lengths, cache)
    np.testing.assert_allclose(hidden, whole[rows, lengths], atol=5e-5)


def sum_loss(decoder):
    def loss_fn(params, batch, key, extra):
        del key, extra
        tokens, positions, segments = batch
        hidden = decoder.hidden(params, tokens, positions, segments)
        value = jnp.sum(jnp.sin(hidden) * jnp.arange(1, hidden.shape[-1] + 1))
        return Objective(value, jnp.asarray(tokens.size, jnp.float32), {})

    return loss_fn


def steps_of(decoder, base, config, row, *, mesh=None, micro_batches=1, count=2):
    """(adapter, metrics) after a few steps; on a mesh everything is split by the rule tables."""
    optimizer = optax.adam(1e-2)
    adapter = trained(base, config)
    options = {}
    shardings = None
    if mesh is not None:
        places = shardings_for(base, DECODER_RULES, mesh)
        base = jax.device_put(base, places)
        adapter_places = shardings_for(adapter, ADAPTER_RULES, mesh)
        shape = abstract_state(jax.eval_shape(lambda: adapter), optimizer, jax.random.key(0))
        shardings = state_shardings(shape, adapter_places, mesh)
        options = dict(mesh=mesh, shardings=shardings, frozen_shardings=places)
        row = put_batch(row, mesh)
    state = create_state(adapter, optimizer, jax.random.key(0), shardings=shardings)
    step = make_train_step(
        sum_loss(decoder),
        optimizer,
        micro_batches=micro_batches,
        attach=functools.partial(lora.attach, config=config),
        **options,
    )
    for _ in range(count):
        state, metrics = step(state, row, base)
    return jax.device_get(state.params), jax.device_get(metrics), state


@pytest.mark.devices(8)
@pytest.mark.filterwarnings("ignore:(embed/embedding|head/kernel). a dimension of 97")
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_sharded_and_micro_batched_steps_equal_plain_ones(name, decoder, base, row):
    plain, metrics, state = steps_of(decoder, base, CONFIGS[name], row)
    assert {path_name(path).rpartition("/")[2] for path, _ in jax.tree_util.tree_leaves_with_path(plain)} == (
        {"lora_a", "lora_b"} | ({"magnitude"} if name == "dora" else set())
    )
    moments = jax.tree.leaves(state.opt_state[0].mu)
    assert sum(leaf.size for leaf in moments) == sum(leaf.size for leaf in jax.tree.leaves(plain))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    # dora has lora's factors and more; lora has both at once instead of each alone
    both = [dict(micro_batches=4), dict(mesh=mesh)] if name == "dora" else [dict(micro_batches=2, mesh=mesh)]
    for options in both:
        found, other, _ = steps_of(decoder, base, CONFIGS[name], row, **options)
        np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=2e-5)
        np.testing.assert_allclose(other["grad_norm"], metrics["grad_norm"], rtol=1e-4)
        # Adam divides by the gradient's own size, so that rounding counts where it is near 0.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4), found, plain)
        close = [
            np.isclose(a, b, atol=2e-5) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True)
        ]
        assert np.mean(np.concatenate([each.ravel() for each in close])) > 0.99


@pytest.mark.devices(8)
@pytest.mark.filterwarnings("ignore:(embed/embedding|head/kernel). a dimension of 97")
def test_the_rules_of_adapters_follow_those_of_the_kernels(base):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    adapter = lora.abstract_adapter(base, CONFIGS["dora"])
    places = shardings_for(adapter, ADAPTER_RULES, mesh)
    kernels = shardings_for(base, DECODER_RULES, mesh)
    for module, parts in lora.adapter_modules(places).items():
        kernel = functools.reduce(lambda tree, name: tree[name], module.split("/"), kernels)["kernel"].spec
        assert parts["lora_a"].spec == jax.sharding.PartitionSpec(None, kernel[1])
        assert parts["lora_b"].spec == jax.sharding.PartitionSpec(None, None, kernel[2])
        assert parts["magnitude"].spec == jax.sharding.PartitionSpec(None, kernel[2])


@pytest.mark.optimised
def test_the_step_holds_no_gradient_of_a_kernel(row):
    """The full step needs more temporary memory, by a good part of the kernels whose gradients it makes."""
    optimizer, config = optax.sgd(1.0), CONFIGS["lora"]
    decoder = Decoder(tiny.config(num_layers=8), compute_dtype="float32")
    base = tiny.random_params(decoder)

    def temporary(params, **options):
        step = make_train_step(sum_loss(decoder), optimizer, **options)
        state = create_state(params, optimizer, jax.random.key(0))
        frozen = (base,) if options else ()
        return step.lower(state, row, *frozen).compile().memory_analysis().temp_size_in_bytes

    full = temporary(jax.tree.map(jnp.copy, base))
    small = temporary(trained(base, config), attach=functools.partial(lora.attach, config=config))
    assert full - small > 0.5 * sum(kernel.nbytes for kernel in lora.target_modules(base, config).values())


def test_norms_of_changes(base):
    config = CONFIGS["rslora"]
    adapter = trained(base, config)
    for module, norms in delta_norms(adapter, config).items():
        a, b = (np.asarray(lora.adapter_modules(adapter)[module][name]) for name in ("lora_a", "lora_b"))
        expected = [6.0 / 2 * np.linalg.norm(one @ other) for one, other in zip(a, b, strict=True)]
        np.testing.assert_allclose(norms, expected, rtol=1e-4)


def test_overrides_change_rank_and_scale(base):
    config = LoraConfig(rank=2, alpha=4.0, overrides=((r"layers/mlp/.*", 3, 9.0),))
    parts = lora.adapter_modules(lora.abstract_adapter(base, config))
    assert parts["layers/mlp/down"]["lora_a"].shape == (2, 48, 3)
    assert parts["layers/attention/key"]["lora_a"].shape == (2, 32, 2)
    assert config.scale("layers/mlp/down") == 3.0
    assert config.scale("layers/attention/key") == 2.0


def test_only_targets_are_replaced(base):
    attached = lora.attach(base, trained(base, CONFIGS["rslora"]), CONFIGS["rslora"])
    attention = attached["layers"]["attention"]
    assert isinstance(attention["query"]["kernel"], AdaptedKernel)
    assert attention["query"]["kernel"].kernel is base["layers"]["attention"]["query"]["kernel"]
    assert attention["key"]["kernel"] is base["layers"]["attention"]["key"]["kernel"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="ia3"), r"adapter.kind='ia3' is not known; use one of lora, dora"),
        (dict(rank=0), r"adapter.rank=0 must be at least 1"),
        (dict(rank=17), r"adapter.rank=17 is more than layers/attention/key has itself \(16\)"),
        (
            dict(targets=(r"layers/attention/querry",)),
            r"'layers/attention/querry' matches no .* layers/attention/query",
        ),
        (dict(targets=(r"embed/embedding",)), r"matches no linear layer"),
    ],
)
def test_wrong_settings_are_named(options, message, base):
    with pytest.raises(UserError, match=message):
        lora.init_adapter(jax.random.key(0), base, LoraConfig(**options))


@pytest.mark.devices(8)
@pytest.mark.filterwarnings("ignore:(embed/embedding|head/kernel). a dimension of 97")
def test_a_fingerprint_sees_every_change_and_no_place(base):
    whole = fingerprint(base)
    assert whole == fingerprint(jax.tree.map(jnp.copy, base))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert whole == fingerprint(jax.device_put(base, shardings_for(base, DECODER_RULES, mesh)))
    kernel = np.asarray(base["layers"]["mlp"]["up"]["kernel"])

    def changed(new):
        mlp = base["layers"]["mlp"] | {"up": {"kernel": new}}
        return fingerprint(base | {"layers": base["layers"] | {"mlp": mlp}})

    one_bit, swapped = kernel.copy(), kernel.copy()
    one_bit[1, 2, 3] = np.nextafter(kernel[1, 2, 3], np.float32(9))
    swapped[0, 0, :2] = kernel[0, 0, 1::-1]
    others = {
        "one bit": changed(jnp.asarray(one_bit)),
        "two swapped": changed(jnp.asarray(swapped)),
        "layers swapped": changed(jnp.asarray(kernel[::-1])),
        "dtype": changed(jnp.asarray(kernel.astype(jnp.bfloat16))),
        "shape": changed(jnp.asarray(kernel.reshape(2, 48, 32))),
    }
    assert len({whole, *others.values()}) == 6
