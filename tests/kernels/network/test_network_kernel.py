"""Network kernels against dense Jacobians: every rule, every kind of parameter, any function."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.data.block_inputs import tokenize
from ntkfusion.data.text import sample_sentences
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.kernels.network import network_kernel as network
from ntkfusion.kernels.network import parameter_kernels as gradient_tiles
from ntkfusion.kernels.network.network_kernel import estimate_network_kernel, network_kernel
from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel
from ntkfusion.utils.parameter_paths import matches, parameter_paths
from tests.helpers.blocks import dense_block, normal, relative
from tests.helpers.tiers import wide_unless

SMALL = nf.BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=12,
    num_labels=2,
    initializer_range=0.5,
)


def bert(dtype, layers=2):
    """A small random BERT with a classification head as f(params, example), its parameters and two sets of examples."""
    model = nf.random_model(dataclasses.replace(SMALL, num_hidden_layers=layers))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)

    def f(params, example):
        out = model.apply(params, input_ids=example["ids"][None], attention_mask=example["mask"][None])
        return out.logits[0]

    ids = jax.random.randint(jax.random.key(0), (5, 7), 0, 30, dtype=jnp.int32)
    mask = (jnp.arange(7)[None] < jnp.array([7, 4, 5, 6, 7])[:, None]).astype(jnp.int32)
    return f, params, {"ids": ids, "mask": mask}, {"ids": ids[:3, ::-1], "mask": mask[:3]}


@functools.cache
def bert_oracle(kind):
    """The dense kernel of `bert` in float64 between x, z (in this order) and both again; jitted, it compiles faster."""
    with jax.enable_x64(True):
        f, params, x, z = bert(jnp.float64)
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts), x, z)
        return np.asarray(jax.jit(lambda p, b: dense_kernel(f, p, b, kind=kind, trace=False))(params, both))


@pytest.mark.parametrize("kind", wide_unless(lambda kind: kind == "sgd", KINDS))
def test_bert_equals_dense_jacobian_in_float64(x64, kind):
    f, params, x, z = bert(jnp.float64)
    oracle = jnp.asarray(bert_oracle(kind))
    assert relative(network_kernel(f, params, x, kind=kind), oracle[:5, :5]) <= 1e-12
    # so little that examples are taken one or two at a time
    few = estimate_network_kernel(f, params, x, z, kind=kind, memory_limit="140KiB")
    assert few.chunk <= 2
    assert relative(network_kernel(f, params, x, z, kind=kind, memory_limit="140KiB"), oracle[:5, 5:]) <= 1e-12
    assert relative(network_kernel(f, params, x, kind=kind, memory_limit="140KiB"), oracle[:5, :5]) <= 1e-12


@pytest.mark.wide
@pytest.mark.parametrize("kind", wide_unless(lambda kind: kind == "sgd", KINDS))
def test_bert_equals_float64_oracle_in_float32(kind):
    f, params, x, z = bert(jnp.float32)
    oracle = jnp.asarray(bert_oracle(kind)[:5, 5:], jnp.float32)
    assert relative(network_kernel(f, params, x, z, kind=kind), oracle) <= 5e-5


def test_groups_add_up_and_select_selects(x64):
    f, params, x, _ = bert(jnp.float64, layers=1)
    groups = {"mlp": "*/mlp/*", "embeddings": "embeddings/*", "rest": "*"}
    parts = network_kernel(f, params, x, groups=groups)
    assert relative(sum(parts.values()), network_kernel(f, params, x)) <= 1e-13
    for name, select in (("mlp", "*/mlp/*"), ("embeddings", lambda path: path.startswith("embeddings"))):
        assert relative(network_kernel(f, params, x, select=select), parts[name]) <= 1e-13


@pytest.mark.wide
def test_padding_changes_nothing(x64):
    f, params, x, _ = bert(jnp.float64, layers=1)
    longer = {
        "ids": jnp.pad(x["ids"], ((0, 0), (0, 3)), constant_values=9),
        "mask": jnp.pad(x["mask"], ((0, 0), (0, 3))),
    }
    for kind in KINDS:
        kernels = [network_kernel(f, params, examples, kind=kind) for examples in (x, longer)]
        assert relative(*kernels) <= 1e-10


def minilm_problem(num_sentences, length, dtype=jnp.float64):
    """Two readouts of MiniLM's first token, and sentences of mixed length."""
    model = nf.load_model("minilm")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), model.params)
    encodings, _ = tokenize(model, sample_sentences()[:num_sentences], max_length=length)
    ids = jnp.array([row + [0] * (length - len(row)) for row in encodings], jnp.int32)
    readout = normal(3, 384, 2).astype(dtype)

    def f(params, example):
        out = model.apply(params, input_ids=example["ids"][None], attention_mask=example["mask"][None])
        return out.last_hidden_state[0, 0] @ readout

    return f, params, {"ids": ids, "mask": (ids != 0).astype(jnp.int32)}


def oracle_of_part(f, params, x, name, kind):
    """The dense kernel of one top-level entry: a Jacobian that still fits."""

    def g(some, example):
        return f({**params, **some}, example)

    return jax.jit(lambda p, x: dense_kernel(g, p, x, kind=kind, trace=False))({name: params[name]}, x)


@pytest.mark.wide
def test_minilms_first_layer_equals_dense_jacobian(x64):
    f, params, x = minilm_problem(3, 8)
    for kind in KINDS:
        ours = network_kernel(f, params, x, kind=kind, select="layer_0/*")
        assert relative(ours, oracle_of_part(f, params, x, "layer_0", kind)) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_minilm_equals_dense_jacobian_of_its_groups(x64, kind):
    """Six sentences: everything, the encoder only, MLP blocks, layer 0's block."""
    f, params, x = minilm_problem(6, 12)
    layers = [f"layer_{index}" for index in range(6)]
    oracle = {name: oracle_of_part(f, params, x, name, kind) for name in ("embeddings", *layers)}
    blocks = [
        dense_kernel(
            lambda some, example, n=name: f({**params, n: {**params[n], "mlp": some}}, example),
            params[name]["mlp"],
            x,
            kind=kind,
            trace=False,
        )
        for name in layers
    ]
    expected = {
        "*": sum(oracle.values()),
        "layer_*": sum(oracle[name] for name in layers),
        "*/mlp/*": sum(blocks),
        "layer_0/mlp/*": blocks[0],
    }
    single, few, _ = minilm_problem(6, 12, jnp.float32)
    for select, kernel in expected.items():
        assert relative(network_kernel(f, params, x, kind=kind, select=select), kernel) <= 1e-10, select
        rounded = network_kernel(single, few, x, kind=kind, select=select)
        assert relative(rounded.astype(jnp.float64), kernel) <= 5e-5, select
    ours = network_kernel(f, params, x, kind=kind, groups={name: f"{name}/*" for name in oracle})
    for name, kernel in oracle.items():
        assert relative(ours[name], kernel) <= 1e-10, name


def test_a_block_is_a_network(x64):
    """One token, C = o outputs: the network kernel is the block's full kernel in closed form."""
    block, x = dense_block(constants=True), normal(7, 6, 5)
    f, params = block_function(block)
    for kind in KINDS:
        assert (
            relative(network_kernel(f, params, x, kind=kind), block_kernel(block, x, kind=kind, trace=False)) <= 1e-12
        )


def tied(params, ids):
    """An embedding used twice, looked up and transposed as the output matrix; a scale, a loop, a convolution."""
    hidden = params["table"][ids] * params["scale"][None, :]
    hidden = hidden + jnp.tanh(hidden @ params["mix"])

    def step(state, row):
        return jnp.tanh(state @ params["loop"] + row), None

    state, _ = jax.lax.scan(step, jnp.zeros(hidden.shape[1], hidden.dtype), hidden)
    smooth = jnp.convolve(state, params["filter"], mode="same")
    return (hidden[-1] + smooth) @ params["table"].T @ params["heads"]


def tied_params(dtype):
    shapes = {"table": (11, 6), "scale": (6,), "mix": (6, 6), "loop": (6, 6), "filter": (3,), "heads": (11, 3)}
    return {name: normal(index, *shape, dtype=dtype) for index, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("kind", KINDS)
def test_tied_repeated_looped_and_convolved_parameters(x64, kind):
    params, x = tied_params(jnp.float64), jnp.array([[1, 4, 1, 9], [0, 0, 0, 3], [10, 9, 8, 7]])
    oracle = dense_kernel(tied, params, x, kind=kind, trace=False, by_parameter=True)
    ours = network_kernel(tied, params, x, kind=kind, groups={name: name for name in params})
    for name in params:
        assert relative(ours[name], oracle[name]) <= 1e-12, name


@pytest.mark.parametrize("kind", KINDS)
def test_indices_out_of_range_have_the_gradient_jax_gives_them(x64, kind):
    def f(params, ids):
        filled = jnp.take(params["table"], ids, axis=0, mode="fill", fill_value=0.0)
        clipped = jnp.take(params["table"], ids, axis=0, mode="clip")
        return jnp.tanh(filled).sum(0) + (clipped**2).sum(0)

    params, x = {"table": normal(0, 4, 2)}, jnp.array([[0, 7, -9, 1], [3, 3, 4, 2]])
    assert (
        relative(network_kernel(f, params, x, kind=kind), dense_kernel(f, params, x, kind=kind, trace=False)) <= 1e-12
    )


@pytest.mark.parametrize("subscripts", ["td,dhk->thk", "td,hkd->thk", "td,hdk->thk", "td,dhk->kth"])
def test_matrices_of_many_axes(x64, subscripts):
    """Attention-style kernels: contracted in front, behind, or between (no factors then, the gradient directly)."""
    given = subscripts.split(",")[1].split("->")[0]
    sizes = {"d": 5, "h": 2, "k": 3}
    params = {"w": normal(0, *[sizes[letter] for letter in given])}

    def f(params, x):
        return jnp.tanh(jnp.einsum(subscripts, x, params["w"])).reshape(-1)[:4]

    x = normal(1, 3, 4, 5)
    for kind in KINDS:
        oracle = dense_kernel(f, params, x, kind=kind, trace=False)
        assert relative(network_kernel(f, params, x, kind=kind), oracle) <= 1e-12


@pytest.mark.parametrize("positions", wide_unless(lambda positions: positions == 40, [1, 2, 40]))
def test_both_forms_of_a_matrix_agree(x64, positions):
    """Few positions: sums over positions; many: gradients. The oracle does not know the difference."""

    def f(params, x):
        return jnp.tanh(jnp.tanh(x @ params["w1"]) @ params["w2"]).sum(0)[:2]

    params, x = {"w1": normal(0, 9, 8), "w2": normal(1, 8, 7)}, normal(2, 11, positions, 9)
    for kind in KINDS:
        oracle = dense_kernel(f, params, x, kind=kind, trace=False)
        assert relative(network_kernel(f, params, x, kind=kind), oracle) <= 1e-12


def test_paths_and_patterns():
    params = {"layer_1": {"mlp": {"w1": jnp.ones(1)}}, "layer_10": {"mlp": {"w1": jnp.ones(1)}}}
    assert parameter_paths(params) == ["layer_1/mlp/w1", "layer_10/mlp/w1"]
    assert matches("layer_1/mlp/w1", "layer_1/*")
    assert not matches("layer_10/mlp/w1", "layer_1/*")


def linear(params, x):
    return x @ params["w"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"select": "layer_7/*"}, "no parameter is selected by 'layer_7/\\*'; paths look like w"),
        ({"groups": {"a": "w", "b": "v*"}}, "group 'b' fits no parameter"),
        ({"f": lambda params, x: (x @ params["w"]).sum()}, "f must return a vector"),
        ({"z": jnp.ones((2, 4))}, "examples of z differ from those of x"),
        ({"x": {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}}, "must share a first axis"),
        ({"memory_limit": "100B"}, "takes 256 B, the limit is 100 B: ask for 1 examples or fewer"),
        ({"memory_limit": "300B"}, "at least, the limit is 300 B: raise memory_limit, shorten"),
        ({"memory_limit": "much"}, "positive size such as 8GiB or 500MB; got 'much'"),
    ],
)
def test_bad_requests_say_what_is_wrong(arguments, message):
    given = {"f": linear, "params": {"w": jnp.ones((3, 2))}, "x": jnp.ones((4, 3)), **arguments}
    with pytest.raises(InputError, match=message):
        network_kernel(**given)


@pytest.mark.wide
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_side_by_side_change_nothing(x64, kind, monkeypatch):
    """As for large matrices: several tiles at a time, in both directions, with remainders; small and large tables."""
    monkeypatch.setattr(gradient_tiles, "GRADIENT_CHUNK", 600)
    monkeypatch.setattr(gradient_tiles, "SMALLEST_TILE", 8)
    monkeypatch.setattr(gradient_tiles, "SIDE_BY_SIDE", 3)
    jax.clear_caches()
    params, x = tied_params(jnp.float64), jnp.array([[1, 4, 1, 9], [0, 0, 0, 3], [10, 9, 8, 7]])
    params |= {"few": normal(8, 2, 6), "wide": normal(9, 6, 17)}

    def f(params, ids):
        shifted = params["few"][ids % 2].mean(0) @ params["wide"]
        return tied(params, ids) + jnp.tanh(shifted).reshape(-1)[:3]

    oracle = dense_kernel(f, params, x, kind=kind, trace=False, by_parameter=True)
    ours = network_kernel(f, params, x, kind=kind, groups={name: name for name in params})
    jax.clear_caches()
    for name in params:
        assert relative(ours[name], oracle[name]) <= 1e-12, name


def test_estimate_is_known_from_shapes_and_the_call_that_follows_compiles_nothing(monkeypatch):
    params, x = {"w": normal(0, 3, 2)}, normal(1, 5, 3)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, x))
    estimate = estimate_network_kernel(linear, *shapes, memory_limit="1MiB")
    assert (estimate.result, estimate.chunk, estimate.limit) == (5 * 5 * 2 * 2 * 4, 5, 2**20)
    assert estimate.result < estimate.peak < 2**14
    assert "5 at a time" in str(estimate)
    monkeypatch.setattr(network, "make_plan", None)  # planning again would call this
    kernel = network_kernel(linear, params, x, memory_limit="1MiB")
    assert relative(kernel, jnp.einsum("nm,cd->nmcd", x @ x.T, jnp.eye(2))) <= 1e-6
