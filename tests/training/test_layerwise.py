"""Layer-wise tuning against a gradient written by hand, and what it leaves alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import ntkfusion as nf
from ntkfusion.data.tasks.task import Examples
from ntkfusion.errors import InputError, NonFiniteLossError
from ntkfusion.models.blocks.coded import LowRankMatrix
from ntkfusion.models.switch.config import SwitchConfig
from ntkfusion.training.layer_loss import Pair, compressed_paths, layer_loss, token_batch
from ntkfusion.training.layerwise import TUNE_LAYERS
from ntkfusion.utils.parameter_paths import flatten, unflatten
from tests.helpers.small_encoders import random_weights
from tests.helpers.tiny_training import CONFIG, as_readable, examples, half, in_double, random_encoded, relative

BARE = dataclasses.replace(CONFIG, head=None, num_labels=None, num_hidden_layers=2, add_pooler=False)
#: One shape of a batch.
RECIPE = dataclasses.replace(TUNE_LAYERS, learning_rate=1e-2, epochs=6, batch_size=8, num_buckets=1)
SWITCH = SwitchConfig(
    vocab_size=31, hidden_size=8, d_kv=4, d_ff=12, num_heads=2, num_experts=2,
    num_encoder_layers=2, num_decoder_layers=1, encoder_sparse_step=2, decoder_sparse_step=1,
)  # fmt: skip
QUICK = pytest.mark.usefixtures("quick_compilation")


class PairIds:
    """A tokenizer of pairs: "5 7" and "9" are 5 7 1 9 1, in segments 0 0 0 1 1."""

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")
    pad_token_id = 0

    def __call__(self, first, second, *, truncation, max_length):
        ids, types = [], []
        for texts in zip(first, second, strict=True):
            parts = [[int(word) for word in text.split()] + [1] for text in texts]
            ids.append((parts[0] + parts[1])[:max_length])
            types.append(([0] * len(parts[0]) + [1] * len(parts[1]))[:max_length])
        return {"input_ids": ids, "token_type_ids": types}


def half_of_each(block):
    """Every second neuron of every expert."""
    return block.replace(**{"experts/w1": block.experts.w1[:, :, ::2], "experts/w2": block.experts.w2[:, ::2]})


def models(layers=(1,), config=BARE):
    """A student with halved blocks, and its teacher."""
    teacher = as_readable(random_weights(config, 0.3))
    blocks = teacher.mlp_blocks()
    return teacher.replace_mlp_blocks({layer: half(blocks[layer]) for layer in layers}), teacher


@QUICK
def test_tuning_lowers_the_loss_on_other_texts_and_moves_compressed_blocks_only():
    student, teacher = models()
    before = jax.tree.map(jnp.copy, (student.params, student.constants))
    tuned, report = nf.tune_layers(student, teacher, examples(40, 0), RECIPE, held_out=examples(16, 1).first)
    print(f"\nheld-out loss {report.loss_before:.4f} -> {report.loss_after:.4f}")
    assert report.loss_after < 0.8 * report.loss_before
    assert report.layers_before[0] == report.layers_after[0] == 0
    assert (report.num_held_out, report.num_updates) == (16, 30)
    ours, theirs = flatten(tuned.params), flatten(before[0])
    changed = {path for path in theirs if not np.array_equal(ours[path], theirs[path])}
    assert changed == {f"layer_1/mlp/{name}" for name in ("w1", "b1", "w2", "b2")}
    for now, then in zip(jax.tree.leaves(tuned.constants), jax.tree.leaves(before[1]), strict=True):
        np.testing.assert_array_equal(now, then)
    for now, then in zip(jax.tree.leaves(student.params), jax.tree.leaves(before[0]), strict=True):
        np.testing.assert_array_equal(now, then)
    again, same = nf.tune_layers(student, teacher, examples(40, 0), RECIPE, held_out=examples(16, 1))
    assert report == same
    assert all(np.array_equal(leaf, ours[path]) for path, leaf in flatten(again.params).items())


class Interrupting:
    """A tracker that interrupts at an update, and keeps which ones it saw."""

    def __init__(self, at=None):
        self.at, self.seen = at, []

    def log(self, step, values):
        self.seen += [step] if "loss" in values else []
        if step == self.at:
            raise KeyboardInterrupt

    def close(self):
        pass


@pytest.mark.wide
@QUICK
def test_tuning_that_was_interrupted_ends_bit_by_bit_like_one_that_was_not(tmp_path):
    student, teacher = models()
    texts = (examples(40, 0), RECIPE)
    whole, report = nf.tune_layers(student, teacher, *texts, held_out=examples(16, 1))
    store = nf.training.StateStore(tmp_path)
    options = {"held_out": examples(16, 1), "store": store, "save_steps": 4}
    for at, first in ((7, 1), (18, 5), (None, 17)):
        told = Interrupting(at)
        if at is not None:
            with pytest.raises(KeyboardInterrupt):
                nf.tune_layers(student, teacher, *texts, **options, trackers=[told])
        else:
            tuned, same = nf.tune_layers(student, teacher, *texts, **options, trackers=[told])
        assert told.seen[0] == first
    assert same == report
    assert all(np.array_equal(leaf, flatten(whole.params)[path]) for path, leaf in flatten(tuned.params).items())
    with pytest.raises(InputError, match="holds another run"):
        nf.tune_layers(student, teacher, *texts, **options, seed=1)
    store.close()


def last_layer(teacher, block, x):
    """What the teacher's last layer makes of its block's inputs, with this block; and on the way to it."""
    h = x @ np.asarray(block.w1) + np.asarray(block.b1)
    cdf = (1 + erf(h / np.sqrt(2))) / 2
    y = x + ((1 if block.q is None else np.asarray(block.q)) * h * cdf) @ np.asarray(block.w2) + np.asarray(block.b2)
    deviation = np.sqrt(y.var(axis=1, keepdims=True) + teacher.config.layer_norm_eps)
    unit = (y - y.mean(axis=1, keepdims=True)) / deviation
    norm = jax.tree.map(np.asarray, teacher.params["layer_1"]["mlp_norm"])
    return unit * norm["scale"] + norm["bias"], unit, deviation, h, cdf


def by_hand(teacher, block, rows):
    """L and its gradient for a last layer that is compressed: each text by itself, without padding, in NumPy."""
    total, tokens = 0.0, sum(map(len, rows))
    sums = dict.fromkeys(("w1", "b1", "w2", "b2"), 0.0)
    scale, whole = np.asarray(teacher.params["layer_1"]["mlp_norm"]["scale"]), teacher.mlp_blocks()[1]
    w2, q = np.asarray(block.w2), np.asarray(block.q)
    for row in rows:
        ids = jnp.asarray([row], jnp.int32)
        x = np.asarray(teacher.block_inputs(ids, jnp.ones_like(ids))[1])[0]
        original, *_ = last_layer(teacher, whole, x)
        states, unit, deviation, h, cdf = last_layer(teacher, block, x)
        gap = states - original
        total += (gap**2).sum() / (2 * tokens)
        into = 2 * gap / (2 * tokens) * scale
        into = (into - into.mean(axis=1, keepdims=True) - unit * (into * unit).mean(axis=1, keepdims=True)) / deviation
        neurons = (into @ w2.T) * q * (cdf + h * np.exp(-(h**2) / 2) / np.sqrt(2 * np.pi))
        parts = {"w1": x.T @ neurons, "b1": neurons.sum(0), "w2": (q * h * cdf).T @ into, "b2": into.sum(0)}
        sums = {name: sums[name] + parts[name] for name in sums}
    return total, sums


@QUICK
def test_gradient_is_the_one_by_hand_whatever_the_padding(x64):
    student, teacher = (in_double(model) for model in models())
    pair, encoded = Pair.of(student, teacher), random_encoded(3, 0, longest=8)
    encoded = dataclasses.replace(encoded, ids=[row[:4] for row in encoded.ids], types=None)
    arrays = token_batch(encoded.batch([0, 1, 2], 5, 16))
    arrays["input_ids"] = np.where(arrays["attention_mask"] == 0, 7, arrays["input_ids"])
    arrays = jax.tree.map(jnp.asarray, arrays)

    @jax.jit
    @jax.value_and_grad
    def mean(trained):
        total = layer_loss(pair.shapes)(unflatten(trained | pair.frozen), pair.constants, arrays, None)
        return total / arrays["weights"].sum().astype(total.dtype)

    value, gradient = mean(pair.trained)
    expected, parts = by_hand(teacher, student.mlp_blocks()[1], encoded.ids)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    assert {path.rpartition("/")[2] for path in gradient} == set(parts)
    assert max(relative(gradient[f"student/layer_1/mlp/{name}"], part) for name, part in parts.items()) < 1e-10


@pytest.mark.wide
@QUICK
def test_factorised_and_coded_blocks_on_pairs_of_sentences():
    _, teacher = models()
    first, second = teacher.mlp_blocks()
    rng = np.random.default_rng(0)
    thin = [jnp.float32(0.3 * rng.normal(size=shape)) for shape in ((8, 2), (2, 12), (12, 2), (2, 8))]
    codes = [LowRankMatrix(*thin[:2]), LowRankMatrix(*thin[2:])]
    coded = nf.models.CodedBlock(codes[0], second.b1, codes[1], second.b2, activation="gelu")
    factorised = nf.models.FactorizedBlock(*thin[:2], first.b1, *thin[2:], first.b2, activation="gelu")
    student = teacher.replace_mlp_blocks({0: factorised, 1: coded})
    object.__setattr__(student, "tokenizer", PairIds())
    pairs = Examples(examples(40, 0).first, examples(40, 1).first, np.zeros(40, np.int32))
    tuned, report = nf.tune_layers(student, teacher, pairs, RECIPE, seed=3)
    assert report.num_held_out == 4
    assert report.loss_after < report.loss_before
    assert jax.tree.structure(tuned.params) == jax.tree.structure(student.params)
    for index, block in enumerate(tuned.mlp_blocks()):
        then = flatten(student.params[f"layer_{index}"]["mlp"])
        assert all(not np.array_equal(leaf, then[name]) for name, leaf in block.parameters().items())


def test_experts_are_tuned_and_routers_are_not():
    teacher = random_weights(SWITCH, 0.3)
    student = teacher.replace_mlp_blocks({1: half_of_each(teacher.mlp_blocks()[1])})
    assert compressed_paths(student, teacher) == {f"encoder/layer_1/mlp/experts/{name}" for name in ("w1", "w2")}
    pair = Pair.of(student, teacher)
    restored = unflatten(pair.trained | pair.frozen)["student"]
    assert jax.tree.structure(restored) == jax.tree.structure(student.params)
    assert set(unflatten(pair.frozen)["teacher"]) == {"encoder"}  # the rest is the student's


def test_what_makes_no_sense_is_refused():
    student, teacher = models()
    texts = examples(8, 0)
    copied = dataclasses.replace(teacher, params=jax.tree.map(jnp.copy, teacher.params))
    for same in (student, dataclasses.replace(student)):
        with pytest.raises(InputError, match="teacher equals student"):
            nf.tune_layers(student, same, texts)
    with pytest.raises(InputError, match="teacher equals student"):
        nf.tune_layers(teacher, copied, texts)
    deeper = random_weights(dataclasses.replace(BARE, num_hidden_layers=3))
    with pytest.raises(InputError, match="before compression"):
        nf.tune_layers(student, deeper, texts)
    with pytest.raises(InputError, match="dropout=False"):
        nf.tune_layers(student, teacher, texts, dataclasses.replace(RECIPE, dropout=True))
    with pytest.raises(InputError, match="needs texts"):
        nf.tune_layers(student, teacher, [])
    with pytest.raises(InputError, match="give held_out"):
        nf.tune_layers(student, teacher, ["5 7 9"])


def test_a_loss_that_is_no_number_stops():
    student, teacher = models()
    block = student.mlp_blocks()[1]
    bad = student.replace_mlp_blocks({1: block.replace(b1=block.b1 * jnp.nan)})
    with pytest.raises(NonFiniteLossError, match="update 0"):
        nf.tune_layers(bad, teacher, examples(40, 0), RECIPE, held_out=examples(16, 1))


@pytest.mark.slow
def test_layers_in_front_of_the_first_compressed_one_are_computed_once():
    student, teacher = models((2,), dataclasses.replace(BARE, num_hidden_layers=3))
    arrays = {name: jnp.ones((4, 8), jnp.int32) for name in ("input_ids", "attention_mask")}
    arrays["weights"] = jnp.ones((4, 8))

    def operations(teacher):
        pair = Pair.of(student, teacher)

        def loss(trained, frozen):
            return layer_loss(pair.shapes)(unflatten(trained | frozen), pair.constants, arrays, None)

        return jax.jit(jax.grad(loss)).lower(pair.trained, pair.frozen).compile().cost_analysis()["flops"]

    other = {**teacher.params, "embeddings": jax.tree.map(lambda leaf: 2 * leaf, teacher.params["embeddings"])}
    assert operations(teacher) < 0.7 * operations(dataclasses.replace(teacher, params=other))
    # a teacher that was loaded anew shares them too
    copied = dataclasses.replace(teacher, params=jax.tree.map(jnp.copy, teacher.params))
    assert operations(teacher) == operations(copied)


@pytest.mark.slow
@QUICK
@pytest.mark.parametrize(
    "config",
    [
        nf.models.GPT2Config(vocab_size=31, hidden_size=8, n_layer=2, n_head=2, n_positions=16),
        nf.models.AlbertConfig(
            vocab_size=31, hidden_size=8, embedding_size=8, num_hidden_layers=2, num_hidden_groups=1,
            num_attention_heads=2, intermediate_size=12, max_position_embeddings=16,
        ),
        SWITCH,
    ],
    ids=lambda config: config.architecture,
)  # fmt: skip
def test_every_architecture(config):
    teacher = as_readable(random_weights(config, 0.3))
    blocks = enumerate(teacher.mlp_blocks())
    smaller = {i: half(b) if isinstance(b, nf.MLPBlock) and b.b1 is not None else half_of_each(b)
               for i, b in blocks if isinstance(b, nf.models.MixtureBlock) or b.b1 is not None}  # fmt: skip
    student = teacher.replace_mlp_blocks(smaller)
    tuned, report = nf.tune_layers(student, teacher, examples(40, 0), RECIPE, held_out=examples(16, 1))
    print(f"\n{config.architecture}: {report.loss_before:.4f} -> {report.loss_after:.4f}")
    assert report.loss_after < 0.9 * report.loss_before
    assert jax.tree.structure(tuned.params) == jax.tree.structure(student.params)
    ours, theirs = flatten(tuned.params), flatten(student.params)
    changed = {path for path in theirs if not np.array_equal(ours[path], theirs[path])}
    assert changed == compressed_paths(student, teacher)


@pytest.mark.slow
def test_minilm_at_a_quarter_of_its_width(minilm, data_dir):
    """V1 on 2000 sentences of SST-2."""
    task = nf.load_task("sst2", data_dir=data_dir).subsampled(train=2000, dev=256, seed=0)
    small, _ = nf.compress(minilm, nf.MLPFusion(keep_ratio=0.25))
    recipe = dataclasses.replace(TUNE_LAYERS, learning_rate=1e-4, max_length=64)
    tuned, report = nf.tune_layers(small, minilm, task.train, recipe, held_out=task.dev)

    def states(model):
        batch = minilm.tokenizer(list(task.dev.first[:64]), padding=True, return_tensors="np")
        inputs = {name: batch[name].astype(np.int32) for name in ("input_ids", "attention_mask")}
        mask = inputs["attention_mask"] > 0
        return np.asarray(model.apply(model.params, **inputs).last_hidden_state)[mask]

    original = states(minilm)
    errors = [float(np.linalg.norm(states(model) - original) / np.linalg.norm(original)) for model in (small, tuned)]
    print(f"\nloss {report.loss_before:.4f} -> {report.loss_after:.4f}")
    print(f"by layer {report.layers_before} -> {report.layers_after}")
    print(f"relative error of the last hidden states {errors[0]:.4f} -> {errors[1]:.4f}")
    assert report.loss_after < 0.7 * report.loss_before
    assert errors[1] < errors[0]
