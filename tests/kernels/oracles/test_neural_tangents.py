"""neural-tangents through the adapter against our own kernels, and JAX untouched by it."""

import contextlib
import functools
import importlib
import os
import subprocess
import sys
import textwrap
import warnings
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import ad

import ntkfusion as nf
from ntkfusion.errors import InputError, NTKFusionError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.oracles import neural_tangents as adapter
from ntkfusion.kernels.oracles import neural_tangents_shim as shim
from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel
from ntkfusion.kernels.oracles.neural_tangents import (
    IMPLEMENTATIONS,
    NeuralTangentsError,
    load_neural_tangents,
    reference_kernel,
)
from ntkfusion.models.bert.config import BertConfig
from tests.helpers.blocks import dense_block, factorized_block, normal, relative
from tests.helpers.tiers import wide_unless

BLOCKS = {
    "gelu": lambda: dense_block(activation="gelu"),
    "relu, q and r": lambda: dense_block(activation="relu", constants=True),
    "silu, q and r, no biases": lambda: dense_block(activation="silu", constants=True, biases=False),
    "factorized": factorized_block,
    "factorized, no biases": lambda: factorized_block(activation="silu", biases=False),
}


def compiled_dense_kernel(f, params, x, z=None):
    return jax.jit(lambda params, x, z: dense_kernel(f, params, x, z, trace=False))(params, x, z)


def traced(kernel):
    return jnp.trace(kernel, axis1=2, axis2=3) / kernel.shape[-1]


def check_block(block, implementation, tolerance, traces=(True, False)):
    f, params = block_function(block)
    x, z = normal(7, 4, block.model_width), normal(8, 2, block.model_width)
    for trace in traces:
        kernel = reference_kernel(f, params, x, z, trace=trace, implementation=implementation)
        assert relative(kernel, block_kernel(block, x, z, trace=trace)) <= tolerance


@pytest.mark.parametrize(
    ("name", "implementation"),
    wide_unless(
        lambda name, implementation: name == "factorized",
        product(BLOCKS, IMPLEMENTATIONS[1:]),
    ),
)
def test_blocks_in_float64(x64, name, implementation):
    traces = (False,) if "no biases" in name else (True, False)
    check_block(BLOCKS[name](), implementation, 1e-12, traces)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("name", wide_unless(lambda name: name == "factorized", ["relu, q and r", "factorized"]))
def test_blocks_in_float32(name, implementation):
    check_block(BLOCKS[name](), implementation, 1e-5)


def test_auto_in_float32_prints_nothing(capsys):
    check_block(BLOCKS["factorized"](), "auto", 1e-5, traces=[True])
    assert capsys.readouterr().out == ""


def test_auto_in_float64(x64):
    check_block(BLOCKS["gelu"](), "auto", 1e-12)


def two_layers(params, x):
    hidden = jnp.tanh(x["features"] @ params["w"] + params["b"])
    return jnp.concatenate([hidden, x["extra"]]) @ params["v"]


def embed(params, x):
    mask = x["attention_mask"].astype(params["table"].dtype)[:, None]
    mean = jnp.sum(params["table"][x["input_ids"]] * mask, axis=0) / jnp.sum(mask)
    return jax.nn.relu(mean @ params["w"] + params["b"]) @ params["v"]


def gate(params, x):
    left, right = jnp.split(x @ params["w"] + params["b"], 2)
    return (jax.nn.silu(left) * right) @ params["v"]


def tokens(seed, n, length, vocabulary):
    ids = jax.random.randint(jax.random.key(seed), (n, length), 0, vocabulary)
    mask = jnp.arange(length)[None, :] < jnp.arange(length - n + 1, length + 1)[:, None]
    return {"input_ids": ids, "attention_mask": mask.astype(jnp.int32)}


def networks():
    """{name: f, params, x, z} with dictionaries, token ids, and primitives with two outputs."""
    weights = {"w": normal(1, 4, 6), "b": normal(2, 6)}
    features = [{"features": normal(i, 3, 4), "extra": normal(i + 1, 3, 2)} for i in (10, 20)]
    table = {"table": normal(5, 11, 4)}
    return {
        "dictionary": (two_layers, weights | {"v": normal(3, 8, 3)}, *features),
        "token ids": (embed, weights | table | {"v": normal(3, 6, 2)}, tokens(1, 3, 5, 11), tokens(2, 2, 5, 11)),
        "split": (gate, weights | {"v": normal(3, 3, 2)}, normal(4, 3, 4), normal(6, 2, 4)),
    }


@pytest.mark.parametrize("name", wide_unless(lambda name: name == "split", networks()))
def test_small_networks(x64, name):
    f, params, x, z = networks()[name]
    expected = compiled_dense_kernel(f, params, x, z)
    for implementation in IMPLEMENTATIONS[1:]:
        kernel = reference_kernel(f, params, x, z, trace=False, implementation=implementation)
        assert relative(kernel, expected) <= 1e-12
    kernel = reference_kernel(f, params, x, implementation="structured-derivatives")
    assert relative(kernel, traced(compiled_dense_kernel(f, params, x))) <= 1e-12


@functools.cache
def bert_model():
    config = BertConfig(
        vocab_size=23,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        initializer_range=0.5,
        num_labels=2,
    )
    return nf.random_model(config)


def bert(dtype):
    """A BERT with a classification head: f, params and three padded sentences."""
    model = bert_model()

    def f(params, x):
        return model.apply(params, **jax.tree.map(lambda ids: ids[None], x)).logits[0]

    return f, jax.tree.map(lambda leaf: leaf.astype(dtype), model.params), tokens(3, 3, 6, 23)


@pytest.mark.wide
def test_bert_in_float64(x64):
    f, params, x = bert(jnp.float64)
    expected = compiled_dense_kernel(f, params, x)
    for implementation in IMPLEMENTATIONS[1:]:
        kernel = reference_kernel(f, params, x, trace=False, implementation=implementation)
        assert relative(kernel, expected) <= 1e-12


@pytest.mark.wide
def test_bert_in_float32():
    f, params, x = bert(jnp.float32)
    kernel = reference_kernel(f, params, x, implementation="jacobian-contraction")
    assert relative(kernel, traced(compiled_dense_kernel(f, params, x))) <= 1e-5


@pytest.mark.wide
def test_batches_change_nothing(x64):
    f, params, x, _ = networks()["token ids"]
    x = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[::-1, ::-1]]), x)
    for z in (None, jax.tree.map(lambda leaf: leaf[:4], x)):
        call = {"trace": False, "implementation": "structured-derivatives"}
        whole = reference_kernel(f, params, x, z, **call)
        assert relative(reference_kernel(f, params, x, z, batch_size=2, **call), whole) <= 1e-14


def test_linearization_of_functions_that_ignore_or_return_parameters(x64):
    params, x = {"w": normal(1, 3, 3), "b": normal(2, 3)}, normal(3, 2, 3)
    for f in (lambda p, x: p["b"], lambda p, x: x @ p["w"], lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T + p["b"]):
        kernel = reference_kernel(f, params, x, trace=False, implementation="structured-derivatives")
        assert relative(kernel, compiled_dense_kernel(f, params, x)) <= 1e-12


@pytest.mark.parametrize("shortcut", wide_unless(lambda shortcut: not shortcut, [False, True]))
def test_structured_derivatives_through_a_reshape_with_and_without_shortcuts(x64, shortcut):
    """A small network like that of its own FlaxCnnTest, whose flattening is a reshape."""
    nt = load_neural_tangents()
    params, x, z = {"w": normal(1, 4, 3), "v": normal(2, 6, 2)}, normal(3, 3, 2, 4), normal(4, 2, 2, 4)

    def f(params, x):
        return jnp.tanh(x @ params["w"]).reshape(x.shape[0], -1) @ params["v"]

    options = {"trace_axes": (), "vmap_axes": 0, "_j_rules": shortcut, "_s_rules": shortcut, "_fwd": shortcut}
    with adapter._as_it_expects():
        found = jax.jit(nt.empirical_ntk_fn(f, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES, **options))(
            x, z, params
        )
    expected = compiled_dense_kernel(lambda params, x: f(params, x[None])[0], params, x, z)
    assert relative(found, expected) <= 1e-12


def test_what_comes_back_to_a_reshape_may_lack_axes_of_length_1():
    """neural-tangents trims them with its shortcuts off, and JAX's old rule did not look at them."""
    (equation,) = jax.make_jaxpr(lambda x: x.reshape(1, 6))(jnp.ones((2, 3))).eqns
    linear = ad.UndefinedPrimal(equation.invars[0].aval)
    for shape in ((6,), (1, 6)):
        (found,) = shim.equation_vjp(equation, jnp.arange(6.0).reshape(shape), linear)
        assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["empirical_test", "rules_test"])
def test_neural_tangents_own_tests_pass_through_the_adapter(name):
    """Those of a checkout of github.com/google/neural-tangents that NTKFUSION_NEURAL_TANGENTS names."""
    checkout = os.environ.get("NTKFUSION_NEURAL_TANGENTS")
    if not checkout or not (Path(checkout) / "tests" / f"{name}.py").is_file():
        pytest.skip("set NTKFUSION_NEURAL_TANGENTS to a checkout of neural-tangents to run its own tests")
    command = [sys.executable, "-m", "tests.helpers.neural_tangents_own_tests", checkout, name]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]


def test_infinite_width_kernels_and_predictions_work():
    nt = load_neural_tangents()
    _, _, kernel = nt.stax.serial(nt.stax.Dense(8), nt.stax.Relu(), nt.stax.Dense(2))
    x = normal(1, 4, 3)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        ntk = kernel(x, None, "ntk")
        predict = nt.predict.gradient_descent_mse_ensemble(kernel, x, jnp.ones((4, 2)))
        assert predict(x_test=x, get="ntk", t=1.0).shape == (4, 2)
    assert ntk.shape == (4, 4)
    assert jnp.all(jnp.linalg.eigvalsh(ntk) > 0)


UNTOUCHED = """
    import sys, types, warnings

    import ntkfusion
    import jax, jax.core, jax.experimental, jax.extend, jax.extend.core, jax.extend.linear_util
    import jax.interpreters.ad, jax.interpreters.partial_eval, jax.numpy as jnp

    def modules():
        return {name for name in sys.modules if name.partition(".")[0] in ("jax", "tensorflow", "tf2jax")
                and not name.startswith("jax._src")}

    def attributes():
        return {(name, key): id(value) for name in modules() for key, value in vars(sys.modules[name]).items()}

    before, names, path = attributes(), modules(), list(sys.meta_path)
    warnings.simplefilter("error")
    from ntkfusion.kernels.oracles.neural_tangents import load_neural_tangents, reference_kernel
    nt = load_neural_tangents()
    assert nt is sys.modules["neural_tangents"] and load_neural_tangents() is nt
    for _ in range(2):
        assert attributes() == before, set(attributes().items()) ^ set(before.items())
        assert modules() == names and sys.meta_path == path
        reference_kernel(lambda w, x: jnp.tanh(x @ w), jnp.ones((2, 2)), jnp.eye(2),
                         implementation="structured-derivatives")
    assert not hasattr(jax.core, "Jaxpr") and not hasattr(jax.interpreters.ad, "reducing_transposes")
    assert not {"tensorflow", "tf2jax", "jax.util", "jax.experimental.jax2tf"} & set(sys.modules)
    import neural_tangents
    assert neural_tangents is nt and nt.stax.Dense and nt.batch
"""


def test_jax_has_the_same_attributes_before_and_after():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(UNTOUCHED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def unloaded(monkeypatch):
    """As if neural-tangents had never been imported; what was loaded comes back."""
    for name in [name for name in sys.modules if name.partition(".")[0] == shim.NAME]:
        monkeypatch.delitem(sys.modules, name)
    adapter.load_neural_tangents.cache_clear()
    yield monkeypatch
    adapter.load_neural_tangents.cache_clear()


def test_after_a_failed_import_by_the_user(unloaded):
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module(shim.NAME)
    if shim.NAME not in sys.modules:  # as ever since JAX 0.6
        assert [name for name in sys.modules if name.startswith(shim.NAME)]
    assert load_neural_tangents()._src.utils.rules.STRUCTURE_RULES


def test_missing(unloaded):
    unloaded.setitem(sys.modules, shim.NAME, None)
    with pytest.raises(NeuralTangentsError, match=r"not installed.*pip install neural-tangents==0\.6\.5") as caught:
        reference_kernel(lambda w, x: x @ w, jnp.eye(2), jnp.eye(2))
    assert isinstance(caught.value, NTKFusionError)


@pytest.mark.parametrize("what", ["jax_view", "REPLACED"])
def test_a_jax_that_breaks_the_adapter_is_named(unloaded, what):
    broken = {"jax_view": lambda: shim.View("jax"), "REPLACED": {"neural_tangents._src.empirical": {"gone": None}}}
    unloaded.setattr(shim, what, broken[what])
    with pytest.raises(NeuralTangentsError, match=f"cannot be imported with JAX {jax.__version__}"):
        load_neural_tangents()
    assert not [name for name in sys.modules if name.startswith(shim.NAME)]
    unloaded.undo()
    assert load_neural_tangents().empirical_ntk_fn  # a second attempt starts afresh


def test_a_jax_that_breaks_one_implementation_is_named(monkeypatch):
    def broken(*_):
        raise AttributeError("no rule")

    monkeypatch.setattr(load_neural_tangents()._src.empirical, "_eqn_vjp_fn", broken)
    with pytest.raises(NeuralTangentsError, match=r"by structured-derivatives with JAX .*no rule"):
        reference_kernel(
            lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w), jnp.eye(2), jnp.eye(2), implementation="structured-derivatives"
        )


def test_the_users_own_neural_tangents_is_used(unloaded):
    own = shim.View("own", empirical_ntk_fn=None)
    unloaded.setitem(sys.modules, shim.NAME, own)
    assert load_neural_tangents() is own


def test_settings_and_warnings_of_the_caller_stay():
    f, params, x, _ = networks()["token ids"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reference_kernel(f, params, x, implementation="structured-derivatives")
    assert not [warning for warning in caught if "Jacobian rule" in str(warning.message)]
    assert jax.config.jax_numpy_rank_promotion == "raise"
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "fast"}, "unknown implementation 'fast'; known: auto, jacobian-contraction"),
        ({"batch_size": 2}, "batch_size must divide the number of examples in x, got 2"),
        ({"batch_size": 0}, "batch_size must divide"),
        ({"x": {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}}, "same number of examples"),
        ({"z": (jnp.ones((3, 2)),)}, "same structure"),
        ({"f": lambda w, x: jnp.sum(x)}, "must return one vector"),
    ],
)
def test_wrong_arguments(change, message):
    call = {"f": lambda w, x: x @ w, "params": jnp.eye(2), "x": jnp.ones((3, 2))}
    with pytest.raises(InputError, match=message):
        reference_kernel(**call | change)
