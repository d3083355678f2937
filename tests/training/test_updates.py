"""Updates are what PyTorch says they are: weights behind ten of them; the wide tier compares every number."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from ntkfusion.checkpoints.load import load_model
from ntkfusion.models.registry import architecture_of
from ntkfusion.training.recipe import Recipe
from ntkfusion.utils.parameter_paths import unflatten
from tests.helpers.oracle import described, digest_error, digests, draw, read_by, write_checkpoint
from tests.helpers.tiny_training import random_encoded, train

UPDATES = 10
CONSTANT = Recipe(learning_rate=1e-4, schedule="constant", warmup=0.0, weight_decay=0.1, dropout=False)
WARMED = dataclasses.replace(CONSTANT, schedule="linear", warmup=0.2)
SIZES = {
    "vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 13, "num_labels": 3,
}  # fmt: skip


def batches(vocab, padding=0, classes=3):
    """Ten different batches of sentences of different lengths; two rows of the last one are not there."""
    encoded = random_encoded(5 * UPDATES, seed=3, vocab=vocab, padding=padding, classes=classes)
    rows = [list(range(5 * place, 5 * place + 5)) for place in range(UPDATES)]
    rows[-1] = rows[-1][:3]
    return [encoded.batch(each, 5, 11) for each in rows]


@pytest.mark.parametrize(
    ("recipe", "dtype"), [(CONSTANT, "float32"), (WARMED, "float64")], ids=["constant, float32", "linear, float64"]
)
def test_weights_behind_ten_updates(recipe, dtype, tmp_path, oracle):
    def asked(torch):
        from tests.training.test_torch_parity import theirs

        model = read_by(cls, tmp_path, attn_implementation="eager")
        weights = theirs(model.double() if dtype == "float64" else model, arrays, recipe)
        return {"names": sorted(weights), "weights": digests({name: weights[name] - before[name] for name in weights})}

    cls = transformers.BertForSequenceClassification
    saved = oracle(lambda torch: described(cls(transformers.BertConfig(**SIZES))))
    before = draw(saved["shapes"])
    write_checkpoint(tmp_path, saved["config"], before)
    arrays = batches(SIZES["vocab_size"])
    with jax.enable_x64(dtype == "float64"):
        model = load_model(tmp_path, dtype=dtype)
        flat = train(model, recipe, arrays)[0]
        names = architecture_of(model.config).names
        after = names.named_tensors(unflatten(flat), head=model.config.head)
    expected = oracle(asked, rounding=1e-8 if dtype == "float64" else 1e-2)
    assert sorted(after) == expected["names"]
    changes = {name: np.asarray(after[name], np.float64) - before[name] for name in after}
    errors = digest_error(digests(changes), expected["weights"])
    # of a key's bias see `test_torch_parity`
    others = [place for place, name in enumerate(sorted(after)) if not name.endswith("key.bias")]
    print(f"\n{dtype}: changes of the weights, largest relative error {errors[others].max():.1e}")
    assert np.all(expected["weights"][others, -1] > 1e-6), "where nothing moves, any two optimisers agree"
    assert errors[others].max() <= (1e-8 if dtype == "float64" else 2e-2)
