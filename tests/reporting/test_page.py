"""The page holds the numbers and pictures, asks the network for nothing and trusts no text."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from ntkfusion.errors import InputError
from ntkfusion.reporting.page import html_page
from ntkfusion.reporting.results import Comparison, ComparisonRow
from ntkfusion.reporting.summary import answer

ROWS = (
    ComparisonRow("svd", 0, 0.25, 4, 25, 100, 0.1, 0.8, math.nan, 1.0),
    ComparisonRow("svd", 1, 0.25, 4, 25, 100, 0.2, 0.6, 0.7, 0.5),
    ComparisonRow("mlp-fusion", 0, 0.25, 4, 25, 100, 0.4, 0.3, 0.6, 0.25),
    ComparisonRow("mlp-fusion", 1, 0.25, 4, 25, 100, 0.1, 0.5, 0.4, 0.25),
)
COMPARISON = Comparison(
    ROWS,
    "ntkfusion compare minilm --text 'a <b>.txt'",
    {"seed": 7},
    {"name": "minilm", "architecture": "bert", "num_layers": 6, "hidden_width": 1536},
    {"text": "packaged sample", "calibration_tokens": 4096, "held_out_tokens": 1024},
    {"ntkfusion": "0.1.0", "jax": "0.10.2"},
    3.0,
)
EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Collects tags, the cells of tables, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells, self.attributes = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append((tag, dict(attrs).get("class")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("td", "th"):
            self.cells.append((data, self.open[-1][1] == "best"))


def test_table_shows_means_and_marks_the_best():
    cells = Reader(html_page(COMPARISON, {}, {})).cells
    svd = cells.index(("svd", False))
    assert cells[svd : svd + 6] == [
        *[("svd", False), ("0.150", True), ("0.700", False), ("n/a", False), ("25.0 %", False), ("1.50", False)]
    ]
    assert cells[svd + 6 : svd + 10] == [("mlp-fusion", False), ("0.250", False), ("0.400", True), ("0.500", True)]


def test_says_what_was_compared_the_answer_and_the_command():
    text = html_page(COMPARISON, {"svd": "low rank"}, {})
    assert "2 methods made the MLP blocks in layers 0–1 of minilm (bert, 6 layers, hidden width 1,536) smaller" in text
    assert "measured on 1,024 tokens (text: packaged sample) from sentences that no method saw; 4,096 tokens" in text
    assert f'<p class="answer">{answer(COMPARISON, {})}</p>' in text
    assert "<dt>svd</dt><dd>low rank</dd>" in text
    assert "jax 0.10.2" in text
    assert "<pre>ntkfusion compare minilm --text &#x27;a &lt;b&gt;.txt&#x27;</pre>" in text


def test_pictures_are_inside_with_their_captions():
    figure = Figure(figsize=(1, 1))
    text = html_page(COMPARISON, {}, {"error_by_width": b"PNG bytes", "kernels_sgd_layer3": figure, "new": b"x"})
    pictures = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]*)"', text)]
    assert pictures[0] == b"PNG bytes"
    assert pictures[1].startswith(b"\x89PNG")
    assert "What is lost at each width" in text
    assert "Rows and columns are tokens" in text
    assert "<figcaption>new</figcaption>" in text


def test_asks_the_network_for_nothing_and_runs_nothing():
    text = html_page(COMPARISON, {}, {"error_by_width": b"x"})
    reader = Reader(text)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert all(value.startswith("data:") for name, value in reader.attributes if name in ("src", "href"))


def test_escapes_every_text_it_is_given():
    rows = tuple(dataclasses.replace(row, method=row.method + EVIL) for row in ROWS)
    everything = Comparison(rows, EVIL, {"seed": EVIL}, {"name": EVIL}, {"text": EVIL}, {EVIL: EVIL}, 1.0)
    everything.inputs["calibration_tokens"] = everything.inputs["held_out_tokens"] = EVIL
    everything.model["architecture"] = EVIL
    text = html_page(everything, {rows[0].method: EVIL}, {f'"{EVIL}': b"x"})
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10
    assert "script" not in Reader(text).tags


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_method_or_layer_without_any_conditions(count):
    text = html_page(Comparison(ROWS[1 : 1 + count], "", {}, {}, {}, {}, 1.0), {}, {})
    assert "None" not in text
    assert "nan" not in text
    Reader(text)


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        html_page(Comparison((), "", {}, {}, {}, {}, 1.0), {}, {})
