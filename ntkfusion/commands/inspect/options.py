"""The options of ``ntkfusion inspect``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses

from ntkfusion.commands.protocol import Flag, ModelArgument


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print a model's architecture, its MLP blocks and where its parameters are.

    Attributes:
        model: `minilm` (the packaged demo model), a Hugging Face folder, or a hub id such as `org/name`.
        ignore_adapter: Take the base weights of a folder that holds an adapter beside them.
        no_tokenizer: Leave the tokenizer alone, such as one that needs a package that is not installed.
    """

    model: ModelArgument
    ignore_adapter: Flag = False
    no_tokenizer: Flag = False
