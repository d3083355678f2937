"""Schedules against those of transformers; what a recipe refuses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from ntkfusion.errors import InputError
from ntkfusion.training.optimizer import clip, decays, learning_rate
from ntkfusion.training.recipe import Recipe

UPDATES = 37


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.3])
@pytest.mark.parametrize(("schedule", "power"), [("linear", 1.0), ("polynomial", 2.0), ("polynomial", 0.5)])
def test_rates_are_those_of_transformers(schedule, power, warmup, oracle):
    def rates(torch):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
        steps = int(warmup * UPDATES), UPDATES
        if schedule == "linear":
            theirs = transformers.get_linear_schedule_with_warmup(optimizer, *steps)
        else:
            theirs = transformers.get_polynomial_decay_schedule_with_warmup(optimizer, *steps, lr_end=0.0, power=power)
        expected = []
        for _ in range(UPDATES + 1):
            expected.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        return expected

    expected = oracle(rates)
    ours = learning_rate(Recipe(learning_rate=3e-4, schedule=schedule, power=power, warmup=warmup), UPDATES)
    found = [float(jnp.asarray(ours(jnp.int32(step)))) for step in range(UPDATES + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-18)


def test_a_constant_rate_warms_up_too():
    rate = learning_rate(Recipe(learning_rate=2.0, schedule="constant", warmup=0.5), 8)
    np.testing.assert_allclose([float(jnp.asarray(rate(step))) for step in range(9)], [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("limit", [0.1, 1.0, 100.0])
def test_clipping_is_that_of_pytorch(limit, oracle):
    def clipped(torch):
        tensors = [torch.zeros(values.shape, dtype=torch.float64) for values in gradients.values()]
        for tensor, values in zip(tensors, gradients.values(), strict=True):
            tensor.grad = torch.tensor(values)
        torch.nn.utils.clip_grad_norm_(tensors, limit)
        return [tensor.grad.numpy() for tensor in tensors]

    rng = np.random.default_rng(0)
    gradients = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)}
    found, _ = clip(limit).update({name: jnp.asarray(values) for name, values in gradients.items()}, ())
    for values, expected in zip(found.values(), oracle(clipped), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("embeddings/word/embedding", (5, 3), True),
        ("layer_0/attention/key/kernel", (3, 3), True),
        ("layer_0/attention/key/bias", (3,), False),
        ("layer_0/mlp/experts/b1", (2, 3), False),
        ("layer_0/mlp_norm/scale", (3,), False),
    ],
)
def test_matrices_decay_and_vectors_do_not(path, shape, expected):
    assert decays(path, jnp.zeros(shape)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
        ({"warmup": 1.0}, "warmup must be from 0 to below 1"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"batch_size": 6, "accumulation": 4}, "batch_size 6 cannot be split into 4 equal parts"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Recipe(**changes)
