"""The oracle itself, against finite differences and hand computation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel, jacobian
from tests.helpers.blocks import dense_block, normal, relative


def test_jacobian_equals_finite_differences(x64):
    f, params = block_function(dense_block())
    x, step = normal(7, 2, 5), 1e-6
    rows = jacobian(f, params, x)["w1"]
    for index in (0, 3, 17):
        bump = jnp.zeros(35).at[index].set(step).reshape(5, 7)
        for n in range(2):
            up, down = (f({**params, "w1": params["w1"] + sign * bump}, x[n]) for sign in (1, -1))
            np.testing.assert_allclose(rows[n, :, index], (up - down) / (2 * step), atol=1e-8)


def test_linear_function_has_the_kernel_known_by_hand(x64):
    def f(params, x):
        return params["w"] @ x

    x = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    params = {"w": jnp.ones((3, 2))}
    np.testing.assert_allclose(dense_kernel(f, params, x), x @ x.T)
    full = dense_kernel(f, params, x, trace=False)
    np.testing.assert_allclose(full[0, 1], (x[0] @ x[1]) * jnp.eye(3))
    np.testing.assert_allclose(dense_kernel(f, params, x, kind="sign"), x @ jnp.sign(x).T)


def test_parameters_add_up(x64):
    f, params = block_function(dense_block())
    x = normal(7, 4, 5)
    parts = dense_kernel(f, params, x, by_parameter=True)
    assert relative(sum(parts.values()), dense_kernel(f, params, x)) == 0
