"""Compare a loaded model with transformers' PyTorch class: outputs, and the gradient of every parameter by name."""

from __future__ import annotations

import jax
import numpy as np
import torch

from ntkfusion.models.registry import architecture_of
from tests.helpers.oracle import digests
from tests.helpers.readout import Differences, difference, our_inner, our_outputs, readout


def compare(model, oracle, batch, *, gradients):
    """The `Differences` of two models on a batch; what belongs to a token counts where there are tokens."""

    def loss(params):
        outputs = our_outputs(model, params, batch)
        return readout({name: outputs[name] for name in expected}, batch, our_inner), outputs

    expected = torch_outputs(oracle, batch)
    if gradients:
        tree, found = jax.jit(jax.grad(loss, has_aux=True))(model.params)
        oracle.zero_grad()
        readout(expected, batch, torch_inner).backward()
        ours = architecture_of(model.config).names.named_tensors(tree, head=model.config.head)
        worst, tensor = _worst_gradient(ours, oracle)
    else:
        _, found = jax.jit(loss)(model.params)
        worst, tensor = 0.0, ""
    assert ("logits" in found) == ("logits" in expected)
    assert "hidden" in expected
    differences = {name: difference(name, found[name], part.detach().numpy(), batch) for name, part in expected.items()}
    return Differences.of(differences, worst, tensor)


def torch_outputs(oracle, batch):
    """What the PyTorch model returns, by name."""
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


def torch_inner(values, weights):
    """The inner product in PyTorch, in the values' dtype."""
    return (values * torch.tensor(weights, dtype=values.dtype)).sum()


def torch_says(oracle, batch, every=1):
    """What a PyTorch model returns and digests of all gradients, for `tests.helpers.readout.compare_with_said`.

    Args:
        oracle: the model.
        batch: what it is given.
        every: keep one of so many features of each output.
    """
    outputs = torch_outputs(oracle, batch)
    oracle.zero_grad()
    readout(outputs, batch, torch_inner).backward()
    parameters = dict(oracle.named_parameters(remove_duplicate=False))
    gradients = {
        name: np.zeros(each.shape) if each.grad is None else each.grad.numpy() for name, each in parameters.items()
    }
    names = sorted(parameters)
    first = {}
    for name in names:
        first.setdefault(id(parameters[name]), name)
    return {
        "outputs": {name: part.detach().numpy()[..., ::every] for name, part in outputs.items()},
        "tied": {name: first[id(parameters[name])] for name in names if first[id(parameters[name])] != name},
        "names": names,
        "gradients": digests(gradients),
        "numbers": sum(parameter.numel() for parameter in oracle.parameters()),
    }


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
