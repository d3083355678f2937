"""How wide a codec may be: the largest latent width whose code fits into a number of stored numbers.

Source: Banaei et al. 2023, "Revisiting Offline Compression" (arXiv 2302.04045) and its code. For n rows of k numbers,
latents of x numbers and a decoder x → 2x → 4x → k there are stored

    n x (latents) + n (row norms) + 10 x² + (6 + 4k) x + k (decoder)   ≤   budget,

so x is the floor of the positive root of a quadratic; of a linear decoder x → k: n x + n + k x + k.
"""

from __future__ import annotations

import dataclasses
import math

#: Hidden layers of the encoder and of the decoder, in latent widths.
ENCODER, DECODER = (8, 4), (2, 4)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The layers of an encoder and a decoder.

    Attributes:
        encoder: k, then the width behind every layer, the last the latent width x.
        decoder: x, then the width behind every layer, the last k.
    """

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    @classmethod
    def of(cls, row_length: int, latent_width: int, *, linear: bool = False) -> Sizes:
        """The layers for rows of `row_length` numbers.

        >>> Sizes.of(768, 14).decoder
        (14, 28, 56, 768)
        """
        inner = (
            ((), ()) if linear else (tuple(f * latent_width for f in ENCODER), tuple(f * latent_width for f in DECODER))
        )
        return cls((row_length, *inner[0], latent_width), (latent_width, *inner[1], row_length))

    @property
    def decoder_parameters(self) -> int:
        """Weights and biases of the decoder."""
        return sum((i + 1) * j for i, j in zip(self.decoder, self.decoder[1:], strict=False))


def latent_width(rows: int, row_length: int, budget: int, *, linear: bool = False, norms: bool = True) -> int:
    """The largest latent width whose latents, decoder and row norms are at most `budget` numbers.

    Args:
        rows: n, how many rows share the decoder.
        row_length: k, numbers per row.
        budget: how many numbers may be stored.
        linear: one affine map as decoder.
        norms: whether the row norms count. They are stored, so they do; without them the method looks smaller than
            it is.

    Returns:
        The width, 0 if not even one latent number per row fits.

    >>> latent_width(768, 768, 768 * 768 // 10)
    14
    """
    left = budget - row_length - (rows if norms else 0)
    if left < 0:
        return 0
    if linear:
        return left // (rows + row_length)
    first, second = DECODER
    quadratic = first + first * second
    slope = rows + first + second + second * row_length
    return (math.isqrt(slope * slope + 4 * quadratic * left) - slope) // (2 * quadratic)
