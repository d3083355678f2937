"""The factors of one parameter's gradients, by how the function uses it; examples come first in every array."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from ntkfusion.models.pytree import pytree, static


@pytree
class DenseFactors:
    """A use as a matrix: inputs a and cotangents d of n examples, with C outputs and T positions.

    Attributes:
        a: what goes into the matrix, [n, T, i].
        d: what comes back to the product, [n, C, T, o].
        rows_are_input: whether the parameter's rows are a's features (else d's).
    """

    a: Float[Array, "*n T i"]
    d: Float[Array, "*n C T o"]
    rows_are_input: bool = static(default=True)

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.a.shape[0]


@pytree
class LookupFactors:
    """A use as a table: row numbers (−1: none) and cotangents d of n examples."""

    rows: Int[Array, "*n T"]
    d: Float[Array, "*n C T o"]

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.rows.shape[0]


@pytree
class DirectFactors:
    """No factors: the gradients themselves, [n, C, p]."""

    gradient: Float[Array, "*n C p"]

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.gradient.shape[0]


Factors = DenseFactors | LookupFactors | DirectFactors
