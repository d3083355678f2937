"""Text of the experiments: the same sentences as ever, and none on both sides."""

from __future__ import annotations

import hashlib

import pytest

from experiments.common.lab import SentenceLab, load_text
from ntkfusion.errors import InputError


def test_sst2_is_read_as_it_is_and_does_not_leak(tmp_path, minilm, monkeypatch):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text('label\tsentence\n0\tA "QUOTE \n1\tsame words\n1\tquite another\n')
    (tmp_path / "sst2" / "dev.tsv").write_text("label\tcontent\n1\tSame  WORDS\n0\tunseen by all\n")
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path))
    text = load_text()
    assert text.train == ('A "QUOTE', "same words", "quite another")
    lab = SentenceLab(minilm, text, 0, (3,), 8, 100)
    assert set(lab.calibration.tokens) == {"[CLS]", "[SEP]", "a", '"', "quote", "quite", "another"}
    (tmp_path / "sst2" / "dev.tsv").write_text("label\tcontent\nSame words\t1\n")
    with pytest.raises(InputError, match=r"dev.tsv, line 2: label .Same words. is unknown"):
        load_text()


def test_sst2_is_the_text_of_earlier_results(data_dir, monkeypatch):
    """Stored results name their text by this digest, of the sentences as the experiment once read them itself."""
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(data_dir))
    text = load_text()
    lines = {name: (data_dir / "sst2" / f"{name}.tsv").read_text().split("\n")[1:] for name in ("train", "dev")}
    expected = {name: [line.split("\t")[1].strip() for line in rows if line] for name, rows in lines.items()}
    assert text.train == tuple(expected["train"])
    assert text.dev == tuple(expected["dev"])
    joined = "\n".join((*expected["train"], "", *expected["dev"]))
    assert text.digest == hashlib.sha256(joined.encode()).hexdigest()[:16]


def test_a_folder_without_sst2_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match="no folder of sst2"):
        load_text()
