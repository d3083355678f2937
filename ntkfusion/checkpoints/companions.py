"""What is written beside a model: the other files of its original's folder, and what was changed in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ntkfusion.checkpoints.fitting_tokenizer import fitting_tokenizer, with_padding
from ntkfusion.checkpoints.formats import Format
from ntkfusion.checkpoints.tokenizers import SETTINGS, changed_tokenizer, for_transformers_4, is_tokenizer_file
from ntkfusion.models.model import Model
from ntkfusion.utils.files import write_contents


@dataclasses.dataclass(frozen=True)
class Companions:
    """What is written beside a model's configuration and weights.

    Attributes:
        files: path in the folder → contents.
        copied: those of them that are as they were in the original's folder.
        changes: what was changed, one sentence each.
        left_behind: path in the original's folder → why it is not among them.
    """

    files: Mapping[str, bytes]
    copied: tuple[str, ...]
    changes: tuple[str, ...]
    left_behind: Mapping[str, str]

    @classmethod
    def of(cls, model: Model, format: Format) -> Companions:  # noqa: A002
        """The companions of a model in a format.

        A tokenizer that fits the model, and is the one its own files make, is written as these files.
        """
        files, changes = dict(model.origin.files), []
        if (changed := changed_tokenizer(_with_fitting_tokenizer(model, format))) is not None:
            others = {name: contents for name, contents in files.items() if not is_tokenizer_file(name)}
            changes += [changed[1]] * (files != others)  # where there was none, none was changed
            files = others | changed[0]
        # the home of the Flax classes is transformers 4
        if format == "flax" and (new := for_transformers_4(files)) is not None:
            files = new
            changes.append(f"{SETTINGS} has names that transformers 4 knows in place of transformers 5's")
        copied = tuple(name for name, contents in files.items() if model.origin.files.get(name) == contents)
        return cls(files, copied, tuple(changes), model.origin.left_behind)

    def lines(self) -> list[str]:
        """Sentences for people: what was copied, changed and left behind."""
        copied = [f"Copied as they were: {', '.join(self.copied)}"] if self.copied else []
        return [*copied, *(f"Changed: {change}" for change in self.changes), *left_behind_lines(self.left_behind)]

    def write(self, folder: Path) -> None:
        """Write the files."""
        write_contents(folder, self.files)


def _with_fitting_tokenizer(model: Model, format: Format) -> Model:  # noqa: A002
    if model.tokenizer is None:
        return model
    saved = model if format == "ntkfusion" else with_padding(model)
    return dataclasses.replace(model, tokenizer=fitting_tokenizer(saved))


def left_behind_lines(left_behind: Mapping[str, str]) -> list[str]:
    """One sentence per reason for which files are left behind."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_behind.items():
        reasons.setdefault(reason, []).append(name)
    return [f"Left behind: {', '.join(names)} ({reason})" for reason, names in reasons.items()]
