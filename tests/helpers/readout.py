"""What a model returns, by name, and one number that depends on all of it: for comparisons with another library."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.models.registry import architecture_of
from tests.helpers.oracle import digest_error, digests


class Differences(NamedTuple):
    """Largest differences of hidden states (absolute), of pooler and logits (relative to the largest logit), and the
    largest relative error of a gradient with its tensor."""

    hidden: float
    pooled: float
    gradient: float
    tensor: str

    def __str__(self):
        gradient = f", gradients {self.gradient:.1e} ({self.tensor})" if self.tensor else ""
        return f"hidden states {self.hidden:.1e}, pooler and logits {self.pooled:.1e}{gradient}"

    @classmethod
    def of(cls, differences, gradient, tensor):
        """From the differences of all outputs by name."""
        hidden = max(error for name, error in differences.items() if "hidden" in name)
        pooled = max((error for name, error in differences.items() if "hidden" not in name), default=0.0)
        return cls(hidden, pooled, gradient, tensor)


def our_outputs(model, params, batch):
    """What the model returns, by name."""
    output = model.apply(params, **{name: _our_array(values) for name, values in batch.items()})
    parts = {
        "hidden": output.last_hidden_state,
        "encoder_hidden": output.encoder_last_hidden_state,
        "pooled": output.pooler_output,
        "logits": output.logits,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _our_array(values):
    return jnp.asarray(values) if np.issubdtype(values.dtype, np.floating) else jnp.asarray(values.astype(np.int32))


def where_it_counts(name, shape, batch):
    """1 where a part of this shape counts: [B, T, ...] at tokens, [B, ...] everywhere."""
    masks = {key: batch[key] for key in ("attention_mask", "decoder_attention_mask") if key in batch}
    decoder = "decoder_input_ids" in batch and name != "encoder_hidden"
    ids = batch["decoder_input_ids"] if decoder else masks["attention_mask"]
    mask = masks.get("decoder_attention_mask" if decoder else "attention_mask", np.ones(ids.shape))
    if len(shape) < 3:
        return np.ones(shape)
    return np.broadcast_to(mask[:, :, None], shape).astype(float)


def difference(name, ours, theirs, batch):
    """The largest difference of a part where it counts; of logits relative to the largest of them."""
    assert ours.shape == theirs.shape, name
    mask = where_it_counts(name, theirs.shape, batch)
    scale = max(1.0, np.abs(theirs * mask).max()) if name == "logits" else 1.0
    return np.abs((np.asarray(ours) - theirs) * mask).max() / scale


def readout(parts, batch, inner):
    """A scalar that depends on everything a model returns for tokens.

    Args:
        parts: arrays or tensors by name.
        batch: what the model was given.
        inner: the inner product of a part with an array of weights, in the part's library.
    """
    rng, total = np.random.default_rng(5), 0.0
    for name, part in parts.items():
        weights = rng.normal(size=part.shape) * where_it_counts(name, part.shape, batch)
        total = total + (1 if "hidden" in name else 10) * inner(part, weights)
    return total


def our_inner(values, weights):
    """The inner product in JAX, in the values' dtype."""
    return jnp.sum(values * jnp.asarray(weights, values.dtype))


def compare_with_said(model, said, batch, every=1):
    """The `Differences` of a model to what `tests.helpers.torch_parity.torch_says` says of PyTorch's."""

    def loss(params):
        outputs = our_outputs(model, params, batch)
        return readout({name: outputs[name] for name in said["outputs"]}, batch, our_inner), outputs

    tree, found = jax.jit(jax.grad(loss, has_aux=True))(model.params)
    assert ("logits" in found) == ("logits" in said["outputs"])
    assert model.num_parameters == said["numbers"]
    differences = {
        name: difference(name, found[name][..., ::every], theirs, batch) for name, theirs in said["outputs"].items()
    }
    ours = architecture_of(model.config).names.named_tensors(tree, head=model.config.head)
    # a tied parameter has two names, of which we have one
    first = {name: said["tied"].get(name, name) for name in said["names"]}
    assert {first[name] for name in ours} == set(first.values())
    theirs = said["gradients"][[said["names"].index(name) for name in sorted(ours)]]
    # a key's bias has no gradient but rounding: see `torch_parity`
    largest = theirs[:, -1].max()
    floors = [largest * (1.0 if name.endswith("key.bias") else 1e-6) for name in sorted(ours)]
    errors = digest_error(digests(ours), theirs, np.array(floors))
    return Differences.of(differences, errors.max(), sorted(ours)[errors.argmax()])
