"""Names beside points."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.common.labels import place_labels


def test_labels_keep_clear_of_each_other():
    axis = Figure(figsize=(6, 6)).subplots()
    labels = {f"method {i}": (0.5 + 0.01 * i, 0.5) for i in range(8)}
    axis.set(xlim=(0, 1), ylim=(0, 1))
    place_labels(axis, labels, list(labels.values()), lambda name: "black", lambda name: False)
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == 8
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
