"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019): an encoder whose layers have weights of their own."""

from __future__ import annotations

import flax.linen as nn

from ntkfusion.models.batch import Batch, ModelOutput
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.layers.encoder import EncoderEmbeddings, EncoderLayer, attention_bias, with_head


class Bert(nn.Module):
    """The encoder with its optional pooler and head; RoBERTa is a configuration of it."""

    config: BertConfig

    @nn.compact
    def __call__(self, batch: Batch, *, deterministic: bool = True) -> ModelOutput:
        """Run the network."""
        config = self.config
        embeddings = EncoderEmbeddings(config, name="embeddings")
        x = embeddings(batch, deterministic=deterministic)
        mask = attention_bias(batch, x.dtype)
        for index in range(config.num_hidden_layers):
            layer = EncoderLayer(config, config.block_layout(index), name=f"layer_{index}")
            x = layer(x, mask, deterministic=deterministic)
        return with_head(config, x, embeddings.word.attend, deterministic=deterministic)
