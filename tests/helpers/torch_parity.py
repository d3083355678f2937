"""Compare a loaded model with transformers' PyTorch class: outputs, and the gradient of every parameter by name."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from ntkfusion.models.registry import architecture_of


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


def compare(model, oracle, batch, *, gradients):
    """The `Differences` of two models on a batch; what belongs to a token counts where there are tokens."""

    def loss(params):
        outputs = our_outputs(model, params, batch)
        return _readout({name: outputs[name] for name in expected}, batch), outputs

    expected = _torch_outputs(oracle, batch)
    if gradients:
        tree, found = jax.jit(jax.grad(loss, has_aux=True))(model.params)
        oracle.zero_grad()
        _readout(expected, batch).backward()
        ours = architecture_of(model.config).names.named_tensors(tree, head=model.config.head)
        worst, tensor = _worst_gradient(ours, oracle)
    else:
        _, found = jax.jit(loss)(model.params)
        worst, tensor = 0.0, ""
    assert ("logits" in found) == ("logits" in expected)
    assert "hidden" in expected
    differences = {name: _difference(name, found[name], expected[name], batch) for name in expected}
    hidden = max(error for name, error in differences.items() if "hidden" in name)
    pooled = max((error for name, error in differences.items() if "hidden" not in name), default=0.0)
    return Differences(hidden, pooled, worst, tensor)


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


def _torch_outputs(oracle, batch):
    output = oracle(**{name: torch.tensor(values) for name, values in batch.items()}, output_hidden_states=True)
    states = output.get("decoder_hidden_states", output.get("hidden_states"))
    logits = output.get("logits")
    if "start_logits" in output:
        logits = torch.stack([output["start_logits"], output["end_logits"]], -1)
    last = output.get("last_hidden_state")
    parts = {
        "hidden": states[-1] if last is None else last,
        "encoder_hidden": output.get("encoder_last_hidden_state"),
        "pooled": output.get("pooler_output"),
        "logits": logits,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _mask(name, shape, batch):
    """1 where a part of this shape counts: [B, T, ...] at tokens, [B, ...] everywhere; None if it is for no token."""
    masks = {key: batch[key] for key in ("attention_mask", "decoder_attention_mask") if key in batch}
    decoder = "decoder_input_ids" in batch and name != "encoder_hidden"
    ids = batch["decoder_input_ids"] if decoder else masks["attention_mask"]
    mask = masks.get("decoder_attention_mask" if decoder else "attention_mask", np.ones(ids.shape))
    if len(shape) < 3:
        return np.ones(shape)
    return np.broadcast_to(mask[:, :, None], shape).astype(float)


def _difference(name, ours, theirs, batch):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape, name
    mask = _mask(name, theirs.shape, batch)
    scale = max(1.0, np.abs(theirs * mask).max()) if name == "logits" else 1.0
    return np.abs((np.asarray(ours) - theirs) * mask).max() / scale


def _readout(parts, batch):
    """A scalar that depends on everything a model returns for tokens, in either library."""
    rng, total = np.random.default_rng(5), 0.0
    for name, part in parts.items():
        weights = rng.normal(size=part.shape) * _mask(name, part.shape, batch)
        total = total + (1 if "hidden" in name else 10) * _inner(part, weights)
    return total


def _inner(values, weights):
    if isinstance(values, torch.Tensor):
        return (values * torch.tensor(weights, dtype=values.dtype)).sum()
    return jnp.sum(values * jnp.asarray(weights, values.dtype))


def _worst_gradient(ours, oracle):
    """The largest error of a gradient, relative to the tensor's own largest entry, and the tensor.

    Attention does not change when all keys move together, so the true gradient of a key's bias is 0: what both
    libraries return is rounding, compared here with the largest entry of all gradients.
    """
    # a tied parameter has two names, of which we have one
    every = dict(oracle.named_parameters(remove_duplicate=False))
    parameters = {name: parameter for name, parameter in every.items() if name in ours}
    assert {id(parameter) for parameter in parameters.values()} == {id(parameter) for parameter in every.values()}
    theirs = {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for name, p in parameters.items()}
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    errors = {}
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        scale = largest if name.endswith("key.bias") else max(np.abs(expected).max(), 1e-6 * largest)
        errors[name] = np.abs(np.asarray(ours[name]) - expected).max() / scale
    name = max(errors, key=errors.__getitem__)
    return errors[name], name
