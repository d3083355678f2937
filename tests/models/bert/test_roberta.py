"""What RoBERTa's configuration says about positions and padding."""

from __future__ import annotations

import pytest

from ntkfusion.errors import InputError
from ntkfusion.models.registry import read_config

SIZES = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def test_positions_behind_padding():
    config = read_config({"model_type": "roberta", **SIZES, "max_position_embeddings": 20, "pad_token_id": 4})
    assert config.max_length == 15
    with pytest.raises(InputError, match="max_position_embeddings 20 leaves no position behind pad_token_id 19"):
        read_config({"model_type": "roberta", **SIZES, "max_position_embeddings": 20, "pad_token_id": 19})


@pytest.mark.parametrize("value", [-1, None, 1.5, True, 10**9])
def test_padding_token_is_a_number(value):
    with pytest.raises(InputError, match="pad_token_id must be a whole number from 0"):
        read_config({"model_type": "roberta", **SIZES, "pad_token_id": value})
