"""The errors a user can cause, each with a sentence that says what came, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class NTKFusionError(Exception):
    """Base of every error this library raises on purpose. The command line prints it and exits with code 2."""


class InputError(NTKFusionError, ValueError):
    """An argument, option, text or shape that cannot be used."""


class OutputExistsError(NTKFusionError, FileExistsError):
    """A result would overwrite an existing one, and nobody asked for that."""


_AFTER_WRITING = "Nothing is left half-written; make room there or choose another place, and run it again"


class OutputWriteError(NTKFusionError, OSError):
    """The system refused to write a result, as on a full disk; nothing of it is left half-written.

    Attributes:
        what: was to be written.
        reason: the system's words.
    """

    def __init__(self, what: str, reason: str, advice: str = _AFTER_WRITING) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what} could not be written: {reason}. {advice}")


class OutputBusyError(NTKFusionError):
    """A folder that another process is writing; the message says which, and since when."""


class CheckpointError(NTKFusionError):
    """A checkpoint that cannot be loaded as it is.

    Attributes:
        source: the folder, file or hub id.
        problems: everything that is wrong with it, one sentence each.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        shown = list(self.problems[:12])
        if len(self.problems) > len(shown):
            shown.append(f"... and {len(self.problems) - len(shown)} more")
        text = shown[0] if len(shown) == 1 else "\n  - ".join([f"{len(self.problems)} problems:", *shown])
        super().__init__(f"cannot load {source}: {text}")


class NonFiniteLossError(NTKFusionError):
    """Training met a loss or a gradient that is no number; the state before it is kept.

    Attributes:
        step: number of the update, from 0.
        rows: places of its examples among the training examples.
        state: the last good state.
    """

    def __init__(self, step: int, rows: Sequence[int], loss: float, state: object = None) -> None:
        self.step, self.rows, self.state = step, tuple(rows), state
        super().__init__(
            f"the loss or its gradient is no number at update {step} (loss {loss}), training examples {_some(rows)}; "
            "the state before this update is kept. Try a smaller learning rate, or clipping."
        )


class NonFiniteOutputsError(NTKFusionError):
    """A model that is trained gives outputs that are no numbers; what was saved before is kept.

    Attributes:
        step: updates done.
        rows: places of the examples with such outputs in their split.
    """

    def __init__(self, step: int, split: str, rows: Sequence[int]) -> None:
        self.step, self.rows = step, tuple(rows)
        super().__init__(
            f"after {step} updates the outputs for {split} examples {_some(rows)} are no finite numbers; what was "
            "saved before is kept. Try a smaller learning rate, or clipping."
        )


def _some(rows: Sequence[int]) -> str:
    """The first of many numbers."""
    return ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
