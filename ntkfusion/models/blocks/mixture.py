"""The mixture of experts with a top-1 router (Switch Transformer)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.base import BlockBase
from ntkfusion.models.blocks.coded import CodedBlock
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.utils.parameter_paths import Params, exchanged
from ntkfusion.utils.pytrees import pytree, static

#: A block that can be an expert: any but a mixture.
Expert: TypeAlias = MLPBlock | FactorizedBlock | GatedBlock | MaskedBlock | CodedBlock

_EXPERTS = "experts/"


@pytree
class MixtureBlock(BlockBase):
    """A mixture of E experts, one per token: ``f(x) = p_e(x) E_e(x)``, ``p = softmax(Rᵀ x)``, ``e = argmax p``.

    Source: Fedus et al. 2021, "Switch Transformers" (arXiv 2101.03961), equations 1 and 2 with k = 1. Every token is
    computed: there is no expert capacity. Ties go to the expert with the lowest number.

    Parameters are named ``router`` (if it is trained) and ``experts/w1``, ``experts/w2``, ... after the experts' own.

    Attributes:
        router: R, [d, E].
        experts: one block (of any kind but a mixture) whose every array has a leading axis E; see `stack`.
        train_router: whether the router is a parameter; a frozen router is a constant and has no part in a kernel.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.blocks.dense import MLPBlock
    >>> one = MLPBlock(jnp.ones((2, 3)), None, jnp.ones((3, 1)), None, activation="relu")
    >>> block = MixtureBlock.stack(jnp.zeros((2, 2)), [one, one])
    >>> block(jnp.ones(2))
    Array([3.], dtype=float32)
    >>> sorted(block.parameters())
    ['experts/w1', 'experts/w2', 'router']
    """

    router: Float[Array, "d E"]
    experts: Expert
    train_router: bool = static(default=True)

    @classmethod
    def stack(
        cls, router: Float[Array, "d E"], experts: Sequence[Expert], *, train_router: bool = True
    ) -> MixtureBlock:
        """A mixture of separate blocks of one kind, shape and activation, one per column of the router.

        Raises:
            InputError: if there is not one expert per column, or the experts differ in more than their numbers.
        """
        kinds = {jax.tree.structure(expert) for expert in experts}
        shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(expert)) for expert in experts}
        if len(experts) != router.shape[1] or len(kinds) != 1 or len(shapes) != 1:
            raise InputError(
                f"a router with {router.shape[1]} columns needs as many experts of one kind, shape and activation; "
                f"got {len(experts)} experts of {len(kinds)} kinds and {len(shapes)} shapes"
            )
        return cls(router, jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts), train_router=train_router)

    @property
    def num_experts(self) -> int:
        """E, the number of experts."""
        return self.router.shape[1]

    def expert(self, index: int | Int[Array, ""]) -> Any:
        """One expert as a block of its own."""
        return jax.tree.map(lambda leaf: leaf[index], self.experts)

    @property
    def _shapes_of_one(self) -> Expert:
        """One expert with shapes for arrays; the block may have shapes itself."""
        return jax.eval_shape(lambda block: block.expert(0), self)

    @property
    def activation(self) -> str:
        """The name of the experts' σ."""
        return self._shapes_of_one.activation

    @property
    def hidden_width(self) -> int:
        """m, the number of neurons of one expert."""
        return self._shapes_of_one.hidden_width

    @property
    def model_width(self) -> int:
        """d, the size of an input."""
        return self.router.shape[0]

    @property
    def output_width(self) -> int:
        """The size o of an output."""
        return self._shapes_of_one.output_width

    @property
    def num_pruned(self) -> int:
        """How many numbers masks remove from all experts together."""
        return self.experts.num_pruned

    def parameters(self) -> Params:
        """The trainable arrays by name; the router only if it is trained."""
        router = {"router": self.router} if self.train_router else {}
        return router | {_EXPERTS + name: array for name, array in self.experts.parameters().items()}

    def constants(self) -> Params:
        """The arrays that are never trained, by name."""
        router = {} if self.train_router else {"router": self.router}
        return router | {_EXPERTS + name: array for name, array in self.experts.constants().items()}

    def replace(self, **arrays: Any) -> MixtureBlock:
        """A copy with some fields, or arrays of the experts (``**{"experts/w1": ...}``), exchanged."""
        inner = {name.removeprefix(_EXPERTS): arrays.pop(name) for name in [*arrays] if name.startswith(_EXPERTS)}
        whole = super().replace(**arrays)
        # the experts' constructor would refuse arrays with a leading axis
        return dataclasses.replace(whole, experts=exchanged(whole.experts, inner))

    def route(self, x: Float[Array, "*batch d"]) -> tuple[Int[Array, "*batch"], Float[Array, "*batch E"]]:
        """The chosen expert of every token, and the probabilities of all."""
        logits = x @ self.router
        return jnp.argmax(logits, axis=-1), jax.nn.softmax(logits, axis=-1)

    def expert_output(self, x: Float[Array, "*batch d"], chosen: Int[Array, "*batch"]) -> Float[Array, "*batch o"]:
        """E_e(x) of the chosen experts: one expert after the other on every token, masked; no weights are gathered."""

        def add(
            total: Float[Array, "*batch o"], numbered: tuple[Expert, Int[Array, ""]]
        ) -> tuple[Float[Array, "*batch o"], None]:
            expert, index = numbered
            return total + jnp.where((chosen == index)[..., None], expert(x), 0), None

        zeros = jnp.zeros((*x.shape[:-1], self.output_width), x.dtype)
        return jax.lax.scan(add, zeros, (self.experts, jnp.arange(self.num_experts)))[0]

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch o"]:
        """The block's outputs for inputs `x`."""
        chosen, probabilities = self.route(x)
        weight = jnp.take_along_axis(probabilities, chosen[..., None], axis=-1)
        return weight * self.expert_output(x, chosen)


def mixture_layout(expert: Expert, num_experts: int) -> MixtureBlock:
    """The layout of a mixture of `num_experts` experts with the layout `expert`, its router trained, in float32."""

    def zeros(one: Expert) -> MixtureBlock:
        router = jnp.zeros((one.model_width, num_experts), jnp.float32)
        return MixtureBlock(router, jax.tree.map(lambda leaf: jnp.zeros((num_experts, *leaf.shape), leaf.dtype), one))

    return jax.eval_shape(zeros, expert)
