"""Files of metrics: whole lines, also behind a process that died while it wrote one."""

from __future__ import annotations

import builtins
import json
import math

import pytest

from ntkfusion.errors import InputError, OutputWriteError
from ntkfusion.training.trackers import JsonLines, Several, TensorBoard, Tracker, forget_after, read_lines


def test_lines_can_be_read_while_they_are_written(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    tracker = JsonLines(path)
    tracker.log(1, {"loss": 0.1 + 0.2, "rate": math.nan})
    tracker.log(2, {"loss": math.inf, "rate": 1.0})
    found = read_lines(path)
    tracker.close()
    assert found == [{"step": 1, "loss": 0.1 + 0.2, "rate": None}, {"step": 2, "loss": None, "rate": 1.0}]
    # strict JSON, which has no NaN
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo', encoding="utf-8")
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    forget_after(path, 5)
    tracker = JsonLines(path)
    tracker.log(3, {"loss": 1.0})
    tracker.close()
    assert [line["loss"] for line in read_lines(path)] == [3.0, 2.0, 1.0]


def test_a_line_that_finds_no_room_is_not_there_in_part(tmp_path):
    resource = pytest.importorskip("resource")
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    tracker.log(1, {"loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        with pytest.raises(OutputWriteError, match=r"metrics.jsonl could not be written: File too large"):
            tracker.log(2, {"loss": 2.0, "gradient_norm": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
    tracker.log(2, {"loss": 2.0})
    tracker.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [1, 1]), (2, [1, 1, 2]), (9, [1, 1, 2, 3])])
def test_later_lines_are_dropped(tmp_path, step, kept):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    for each in (1, 1, 2, 3):
        tracker.log(each, {"loss": 1.0})
    tracker.close()
    forget_after(path, step)
    assert [line["step"] for line in read_lines(path)] == kept
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_no_file_has_no_lines(tmp_path):
    forget_after(tmp_path / "none.jsonl", 3)
    assert read_lines(tmp_path / "none.jsonl") == []
    assert not list(tmp_path.iterdir())


def test_all_trackers_are_told(tmp_path):
    trackers = [JsonLines(tmp_path / f"{name}.jsonl") for name in "ab"]
    both = Several(trackers)
    assert isinstance(both, Tracker)
    both.log(7, {"loss": 1.0})
    both.close()
    assert read_lines(tmp_path / "a.jsonl") == read_lines(tmp_path / "b.jsonl") == [{"step": 7, "loss": 1.0}]


def events_in(folder):
    """The events of the one file there."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.*")
    data, events = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = TensorBoard(tmp_path)
    tracker.log(3, {"loss": 0.5, "dev/accuracy": 0.75})
    tracker.close()
    found = {
        (value.tag, event.step): value.simple_value for event in events_in(tmp_path) for value in event.summary.value
    }
    assert found == {("loss", 3): 0.5, ("dev/accuracy", 3): 0.75}


def test_tensorboard_is_told_where_a_run_goes_on(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import SessionLog

    TensorBoard(tmp_path, 4).close()
    assert [event.step for event in events_in(tmp_path) if event.session_log.status == SessionLog.START] == [5]


def test_without_tensorboardx_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"which is not installed: run `.*pip install .*tensorboard[xX]>=2.6.*`"):
        TensorBoard(tmp_path)
