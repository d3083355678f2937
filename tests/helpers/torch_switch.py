"""PyTorch's Switch Transformer in float64."""

from __future__ import annotations

import torch
from transformers.models.switch_transformers import modeling_switch_transformers as theirs


def in_double(oracle):
    """The model in float64; its norms and routers compute in float32 whatever the model's dtype is."""
    oracle = oracle.double()
    for module in oracle.modules():
        if isinstance(module, theirs.SwitchTransformersTop1Router):
            module.dtype = torch.float64
        if isinstance(module, theirs.SwitchTransformersLayerNorm):
            module.forward = lambda x, module=module: torch.nn.functional.rms_norm(
                x, x.shape[-1:], module.weight, module.variance_epsilon
            )
    return oracle
