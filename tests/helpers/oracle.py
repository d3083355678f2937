"""What PyTorch says, asked now or read from `tests/stored`; and checkpoints of transformers' classes without PyTorch.

A test with the fixture `oracle` runs twice: in the default tier it compares with what PyTorch said when
``python -m tests.stored.make`` was run, and in the wide tier with PyTorch itself, which must still say the same.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

STORED = Path(__file__).parents[1] / "stored"
TESTS = STORED.parent


def stored_file(module):
    """Where the answers to a file of tests are."""
    place = Path(module).resolve().relative_to(TESTS).with_suffix("")
    return STORED / ("-".join(place.parts) + ".npz")


class Oracle:
    """Answers to the questions of one test, in the order in which it asks them.

    Attributes:
        torch: PyTorch, or None where the answers are read.
    """

    def __init__(self, module, test, torch=None, recording=False):
        self.file = stored_file(module)
        self.test, self.torch, self.recording = test, torch, recording
        self.asked = 0
        self.new = {}

    def __call__(self, ask, rounding=None):
        """An answer.

        Args:
            ask: from PyTorch to the answer: dictionaries, lists, arrays, numbers and words.
            rounding: by how much of its largest number an array may differ from the stored one; by default, what is
                rounding in the array's own dtype.
        """
        key = f"{self.test}#{self.asked}"
        self.asked += 1
        if self.torch is None:
            return self._stored(key)
        answer = ask(self.torch)
        if self.recording:
            arrays = []
            text = json.dumps(_packed(answer, arrays))
            self.new |= {key: np.frombuffer(text.encode(), np.uint8)}
            self.new |= {f"{key}.{place}": array for place, array in enumerate(arrays)}
        else:
            _assert_same(answer, self._stored(key), key, rounding)
        return answer

    def _stored(self, key):
        assert self.file.exists(), f"{self.file} is missing; `python -m tests.stored.make` makes it"
        with np.load(self.file) as file:
            structure = json.loads(file[key].tobytes())
            return _unpacked(structure, lambda place: file[f"{key}.{place}"])

    def write(self):
        """Add what was recorded to the file."""
        if self.new:
            held = dict(np.load(self.file)) if self.file.exists() else {}
            np.savez_compressed(self.file, **held | self.new)


def _packed(answer, arrays):
    if isinstance(answer, dict):
        return {name: _packed(value, arrays) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [_packed(value, arrays) for value in answer]
    if isinstance(answer, np.ndarray):
        arrays.append(answer)
        return {"__array__": len(arrays) - 1}
    return answer


def _unpacked(structure, read):
    if isinstance(structure, dict):
        if structure.keys() == {"__array__"}:
            return read(structure["__array__"])
        return {name: _unpacked(value, read) for name, value in structure.items()}
    return [_unpacked(value, read) for value in structure] if isinstance(structure, list) else structure


def _assert_same(now, then, where, rounding):
    """Both answers agree: arrays to rounding in their dtype, all else exactly."""
    if isinstance(then, dict):
        assert now.keys() == then.keys(), where
        for name, value in then.items():
            _assert_same(now[name], value, f"{where}, {name}", rounding)
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for one, other in zip(now, then, strict=True):
            _assert_same(one, other, where, rounding)
    elif isinstance(then, np.ndarray) and then.dtype.kind == "f":
        assert now.dtype == then.dtype, where
        rounding = rounding or (1e-10 if then.dtype == np.float64 else 1e-5)
        np.testing.assert_allclose(now, then, rtol=rounding, atol=rounding * np.abs(then).max(initial=0), err_msg=where)
    elif isinstance(then, float):
        np.testing.assert_allclose(now, then, rtol=1e-10, atol=1e-15, err_msg=where)
    else:
        np.testing.assert_array_equal(now, then, err_msg=where)


def described(oracle):
    """What `save_pretrained` writes for a PyTorch model: its config.json, and its tensors' shapes by name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        oracle.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        shapes = {name: list(array.shape) for name, array in load_file(Path(folder) / "model.safetensors").items()}
    del config["transformers_version"]
    return {"config": config, "shapes": shapes}


def draw(shapes, seed=0, matrices=0.15, vectors=0.15):
    """Float32 weights by name, all of them random: scales of norms about 1, everything else about 0.

    A tensor's numbers depend on the seed, its name and its shape alone.
    """
    drawn = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = (matrices if len(shape) > 1 else vectors) * rng.normal(size=shape)
        is_scale = len(shape) == 1 and name.endswith("weight")
        drawn[name] = (is_scale + values).astype(np.float32)
    return drawn


def write_checkpoint(folder, config, tensors):
    """The folder, with config.json and model.safetensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def read_by(cls, folder, **options):
    """transformers' model of this class in eval mode, after a look at what it found in the folder."""
    oracle, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return oracle.eval()


def digest(name, values, numbers=4):
    """Projections of an array on random directions and, last, its norm: what is left of a gradient in a small file."""
    flat = np.asarray(values, np.float64).ravel()
    directions = np.random.default_rng(zlib.crc32(name.encode())).normal(size=(numbers, flat.size))
    return np.append(directions @ flat, np.linalg.norm(flat))


def digests(arrays):
    """Digests of arrays by name, [names, numbers] in the names' order."""
    return np.stack([digest(name, arrays[name]) for name in sorted(arrays)])


def digest_error(ours, theirs, floor=0.0):
    """The largest error of a projection per array, relative to the array's norm (at least `floor`)."""
    return np.abs(ours - theirs).max(axis=1) / np.maximum(theirs[:, -1], floor)
