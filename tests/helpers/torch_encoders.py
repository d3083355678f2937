"""Small random BERTs, RoBERTas and ALBERTs of transformers, and their comparison with ours."""

from __future__ import annotations

import torch
import transformers

from ntkfusion.checkpoints.load import load_model
from tests.helpers.small_encoders import CLASSES, small_batch
from tests.helpers.torch_parity import compare


def small_oracle(case):
    """A random model whose every parameter matters, LayerNorms and biases included."""
    torch.manual_seed(0)
    labels = {"num_labels": case.num_labels} if "classification" in (case.head or "") else {}
    sizes = case.sizes | labels
    config = getattr(transformers, f"{case.family}Config")(**sizes, attn_implementation="eager")
    kind = getattr(transformers, case.family + CLASSES[case.head])
    oracle = kind(config, add_pooling_layer=case.pooler) if case.head is None else kind(config)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return oracle.eval()


def check(case, folder, dtype):
    """Load the case's model and compare outputs and gradients; the loaded model."""
    oracle = small_oracle(case)
    oracle.save_pretrained(folder)
    model = load_model(folder, dtype=dtype)
    assert model.config.head == case.head
    assert model.num_parameters == sum(parameter.numel() for parameter in oracle.parameters())
    oracle = oracle.double() if dtype == "float64" else oracle
    found = compare(model, oracle, small_batch(case, oracle.config), gradients=True)
    print(f"\n{case.family}, {case.name}, {dtype}: {found}")
    double = dtype == "float64"
    assert found.hidden <= (1e-10 if double else 2e-5)
    assert found.pooled <= (1e-9 if double else 2e-5)
    assert found.gradient <= (1e-9 if double else 1e-4)
    return model


def with_embeddings(oracle, batch):
    """The batch with word embeddings in place of token ids."""
    words = oracle.get_input_embeddings()(torch.tensor(batch["input_ids"])).detach().numpy()
    return {"inputs_embeds": words} | {name: values for name, values in batch.items() if name != "input_ids"}
