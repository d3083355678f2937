"""Files as they are: quotation marks, line ends, byte order marks, and what is wrong on which line."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntkfusion.data.tasks.tables import read_table
from ntkfusion.errors import InputError


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_is_quoted_with_line_breaks_inside_and_byte_order_mark(tmp_path):
    path = write(tmp_path, "a.csv", '\ufefftext, label\r\n"one, ""two""\r\nthree",1\r\n\r\nNA,2020-01-01')
    table = read_table(path)
    assert table.columns == {"text": ['one, "two"\r\nthree', "NA"], "label": ["1", "2020-01-01"]}
    assert table.lines == [2, 5]


def test_a_cell_may_be_a_whole_book(tmp_path):
    before, book = csv.field_size_limit(), "word " * 100_000
    assert read_table(write(tmp_path, "a.csv", f"text,label\n{book},1\n")).columns["text"] == [book]
    assert csv.field_size_limit() == before


def test_tsv_takes_quotation_marks_as_text(tmp_path):
    table = read_table(write(tmp_path, "a.TSV", 'label\ttext\r\n1\t"open, \u2028and so on\r\n\n0\t\\n\n'))
    assert table.columns == {"label": ["1", "0"], "text": ['"open, \u2028and so on', "\\n"]}
    assert table.lines == [2, 4]


def test_names_stand_for_the_first_columns_of_a_file_without_header(tmp_path):
    path = write(tmp_path, "a.txt", "1\tx\n2\ty\tmore\t\n")
    assert read_table(path, names=("label", "text"), style="tsv").columns == {"label": ["1", "2"], "text": ["x", "y"]}
    with pytest.raises(InputError, match=r"line 1: 2 fields, expected at least 3"):
        read_table(path, names=("a", "b", "c"), style="tsv")


def test_json_values_stay_what_they_are(tmp_path):
    path = write(
        tmp_path, "a.jsonl", '{"text": "2020-01-01", "label": 1}\n\n{"label": "1", "text": "NA", "more": []}\n'
    )
    table = read_table(path)
    assert table.texts("text") == ("2020-01-01", "NA")
    assert table.column("label") == [1, "1"]
    assert table.lines == [1, 3]
    with pytest.raises(InputError, match=r"a.jsonl, line 1 has no 'more', which other lines have"):
        table.column("more")


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_what_others_write_comes_back_unchanged(rows, tmp_path):
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("first", "second"), *rows])
    lines = "".join(json.dumps({"first": a, "second": b}, ensure_ascii=False) + "\n" for a, b in rows)
    for path in (tmp_path / "a.csv", write(tmp_path, "a.jsonl", lines)):
        table = read_table(path)
        assert list(zip(table.texts("first"), table.texts("second"), strict=True)) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\nb\n", r"a.csv, line 3: 1 fields, expected 2, as in the header"),
        ("a.csv", "text,label\na,1,2\n", r"line 2: 3 fields"),
        ("a.csv", 'text,label\na,1\n"open,2\n', r"line 3: unexpected end of data"),
        ("a.csv", "text,text\na,1\n", r"two columns have the same name; the header is 'text', 'text'"),
        ("a.csv", "text,label\n", r"has no examples"),
        ("a.csv", "", r"has no examples"),
        ("a.jsonl", "\n", r"has no examples"),
        ("a.jsonl", '{"text": "a"}\n{"text":\n', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"line 1: expected a JSON object"),
        ("a.txt", "text\n", r"suffix should be .csv, .tsv or .jsonl, it is '.txt'"),
        ("a.tsv", b"text\tlabel\n\xe9\t1\n", r"not UTF-8"),
    ],
)
def test_broken_files_are_refused_with_the_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_table(write(tmp_path, name, content))


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path / "b.csv")


def test_wrong_columns_and_empty_texts_are_refused(tmp_path):
    table = read_table(write(tmp_path, "a.jsonl", '{"text": "a", "n": 1}\n{"text": " ", "n": 2}'))
    with pytest.raises(InputError, match=r"has no column 'sentence'; it has 'text', 'n'"):
        table.column("sentence")
    with pytest.raises(InputError, match=r"line 2: 'text' is empty"):
        table.texts("text")
    with pytest.raises(InputError, match=r"line 1: 'n' should be text, it is 1"):
        table.texts("n")
