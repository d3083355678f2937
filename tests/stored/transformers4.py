"""What transformers 4 computes, in PyTorch and in Flax, from folders of `tests.helpers.folders`: stored for the tests.

Transformers 5 has no Flax classes, so this needs a venv of its own, with neither this library nor its JAX::

    uv venv --python 3.11 venv4
    uv pip install --python venv4/bin/python transformers==4.53.3 jax==0.4.35 jaxlib==0.4.35 flax==0.10.2 \
        "numpy<2.3" "scipy<1.16" torch
    venv4/bin/python -m tests.stored.transformers4 make            # writes tests/stored/transformers4.npz
    venv4/bin/python -m tests.stored.transformers4 read FOLDER…    # what the Flax class says of folders we exported

``make`` also writes every model by the real ``save_pretrained`` of its PyTorch and its Flax class: the hand-made
writers of `tests.helpers.folders` must write the same names, shapes and numbers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.helpers.folders import CASES, flat_tree, inputs, outputs_of, tensors_of, write_folder
from tests.helpers.oracle import STORED

STORED_FILE = STORED / "transformers4.npz"


def main(arguments):
    """Make the file, or read folders."""
    if arguments == ["make"]:
        return _make()
    if arguments[:1] == ["read"] and arguments[1:]:
        for folder in map(Path, arguments[1:]):
            np.savez(folder / "flax_says.npz", output=_flax_says(folder))
        return 0
    print(__doc__)
    return 2


def _make():
    answers = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if case.has_flax_class:
                write_folder(folder / "hand", case, "flax4")
                answers[case.name] = _flax_says(folder / "hand")
                _check_flax_names(case, folder)
            else:
                write_folder(folder / "hand", case, "torch4")
                answers[case.name] = _torch_says(folder / "hand")
            _check_torch_names(case, folder)
        print(case.name, answers[case.name].shape, f"{np.abs(answers[case.name]).max():.3g}")
    np.savez_compressed(STORED_FILE, **answers)
    print(f"{len(answers)} answers, {STORED_FILE.stat().st_size / 1000:.0f} kB")
    return 0


def _class(folder, flax):
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, f"Flax{name}" if flax else name)


def _inputs(folder):
    config = json.loads((folder / "config.json").read_text())
    return inputs(config)


def _flax_says(folder):
    return outputs_of(_class(folder, flax=True).from_pretrained(folder)(**_inputs(folder)))


def _torch_says(folder):
    import torch

    # its default attention ignores how GPT-2's configuration scales scores
    options = {"output_loading_info": True, "attn_implementation": "eager"}
    model, info = _class(folder, flax=False).from_pretrained(folder, **options)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    # in double: with ALBERT's narrow norms PyTorch's own single precision is 3e-6 from it
    with torch.no_grad():
        found = model.eval().double()(**{name: torch.tensor(value) for name, value in _inputs(folder).items()})
    return outputs_of(found).astype(np.float32)


def _check_torch_names(case, folder):
    """The real PyTorch class writes the tensors that the hand-made writer writes."""
    from safetensors.numpy import load_file

    write_folder(folder / "torch", case, "torch4")
    model = _class(folder / "torch", flax=False).from_pretrained(folder / "torch")
    model.save_pretrained(folder / "real")
    _assert_same(load_file(folder / "real" / "model.safetensors"), tensors_of(case, "torch4"), case.name)


def _check_flax_names(case, folder):
    import flax.serialization

    model = _class(folder / "hand", flax=True).from_pretrained(folder / "hand")
    model.save_pretrained(folder / "real flax")
    real = flax.serialization.msgpack_restore((folder / "real flax" / "flax_model.msgpack").read_bytes())
    _assert_same(flat_tree(real), flat_tree(tensors_of(case, "flax4")), case.name)


def _assert_same(real, made, name):
    assert real.keys() == made.keys(), (name, sorted(real.keys() ^ made.keys()))
    for key, array in made.items():
        np.testing.assert_array_equal(real[key], array, err_msg=f"{name}: {key}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
