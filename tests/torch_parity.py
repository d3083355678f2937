"""Compare a loaded BERT with transformers' PyTorch class: outputs, and the gradient of every parameter by name."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from ntkfusion.checkpoints.bert_names import BERT


class Differences(NamedTuple):
    """Largest absolute differences of outputs, and the largest relative error of a gradient with its tensor."""

    hidden: float
    pooled: float
    gradient: float
    tensor: str

    def __str__(self):
        gradient = f", gradients {self.gradient:.1e} ({self.tensor})" if self.tensor else ""
        return f"hidden states {self.hidden:.1e}, pooler and logits {self.pooled:.1e}{gradient}"


def compare(model, oracle, batch, *, gradients):
    """The `Differences` of two models on a batch; hidden states count where there are tokens."""
    mask = batch["attention_mask"]

    def loss(params):
        outputs = our_outputs(model, params, batch)
        return _readout(outputs, mask), outputs

    expected = _torch_outputs(oracle, batch)
    if gradients:
        tree, found = jax.jit(jax.grad(loss, has_aux=True))(model.params)
        oracle.zero_grad()
        _readout(expected, mask).backward()
        worst, tensor = _worst_gradient(BERT.named_tensors(tree, head=model.config.head), oracle)
    else:
        _, found = jax.jit(loss)(model.params)
        worst, tensor = 0.0, ""
    assert [part is None for part in found] == [part is None for part in expected]
    differences = [
        np.abs(np.asarray(ours) - theirs.detach().numpy())
        for ours, theirs in zip(found, expected, strict=True)
        if ours is not None
    ]
    pooled = max((part.max() for part in differences[1:]), default=0.0)
    return Differences(differences[0][mask.astype(bool)].max(), pooled, worst, tensor)


def our_outputs(model, params, batch):
    """Hidden states, pooled output, logits."""
    output = model.apply(params, **{name: jnp.asarray(values.astype(np.int32)) for name, values in batch.items()})
    return output.last_hidden_state, output.pooler_output, output.logits


def _torch_outputs(oracle, batch):
    inputs = {name: torch.tensor(values) for name, values in batch.items()}
    if isinstance(oracle, transformers.BertForSequenceClassification):
        output = oracle.bert(**inputs)
        return output.last_hidden_state, output.pooler_output, oracle.classifier(output.pooler_output)
    output = oracle(**inputs)
    return output.last_hidden_state, output.pooler_output, None


def _readout(outputs, mask):
    """A scalar that depends on everything a model returns for tokens, in either library."""
    rng = np.random.default_rng(5)
    hidden, pooled, logits = outputs
    total = _inner(hidden, rng.normal(size=hidden.shape) * mask[:, :, None])
    for part in (pooled, logits):
        if part is not None:
            total = total + 10 * _inner(part, rng.normal(size=part.shape))
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
    theirs = {name: parameter.grad.numpy() for name, parameter in oracle.named_parameters()}
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    errors = {}
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        scale = largest if name.endswith("key.bias") else np.abs(expected).max()
        errors[name] = np.abs(np.asarray(ours[name]) - expected).max() / scale
    name = max(errors, key=errors.__getitem__)
    return errors[name], name
