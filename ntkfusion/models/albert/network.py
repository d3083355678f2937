"""ALBERT (Lan et al. 2020): layers in groups that share their weights, embeddings of a width of their own."""

from __future__ import annotations

import flax.linen as nn

from ntkfusion.models.albert.config import AlbertConfig
from ntkfusion.models.batch import Batch, ModelOutput
from ntkfusion.models.layers.encoder import EncoderEmbeddings, EncoderLayer, attention_bias, dense, with_head


class Albert(nn.Module):
    """The encoder with its optional pooler and head."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, batch: Batch, *, deterministic: bool = True) -> ModelOutput:
        """Run the network: every layer is a call of its group's one module."""
        config = self.config
        embeddings = EncoderEmbeddings(config, name="embeddings")
        x = dense(config.hidden_size, config, "embedding_map")(embeddings(batch, deterministic=deterministic))
        mask = attention_bias(batch, x.dtype)
        groups = [
            EncoderLayer(config, config.block_layout(index), name=f"group_{index}")
            for index in range(config.num_hidden_groups)
        ]
        # parameters are made by the first call: more of them would only make files of many layers slow to check
        calls = range(config.num_hidden_groups) if self.is_initializing() else config.applications
        for group in calls:
            x = groups[group](x, mask, deterministic=deterministic)
        return with_head(config, x, embeddings.word.attend, deterministic=deterministic)
