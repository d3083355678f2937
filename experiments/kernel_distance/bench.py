"""What the sections share: the request, the store, the model and one seed's lab at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from experiments.common.lab import SentenceLab, Text, load_text
from experiments.common.store import Job, Result, ResultStore
from experiments.kernel_distance.options import DistanceOptions
from ntkfusion.checkpoints.load import load_model
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.utils.progress import show_progress

#: The three errors of a block, as `Reference.errors` names them.
ERRORS = ("output_error", "sgd_kernel_error", "sign_kernel_error")


class Bench:
    """A request with everything it needs, made when it is needed."""

    def __init__(self, options: DistanceOptions) -> None:
        """Check the output folder and read the text; nothing long.

        Raises:
            NTKFusionError: if the folder must not be written to, or there is no usable text.
        """
        self.options = options
        self.store = ResultStore(options.out, options.overwrite)
        self.text: Text = load_text()
        #: what readers of the tables should know
        self.notes: list[str] = []
        self._lab: SentenceLab | None = None

    @cached_property
    def model(self) -> Model:
        """The original."""
        return load_model(self.options.model)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that are compressed."""
        return check_layers(self.options.layers or None, self.model.config.num_blocks)

    def settings(self, **more: object) -> dict[str, object]:
        """The settings that every result depends on, and more."""
        return {"model": self.options.model, "text": self.text.digest, "layers": list(self.layers), **more}

    def lab(self, seed: int) -> SentenceLab:
        """The lab of a seed; the one of another seed is given up, so that memory holds one."""
        if self._lab is None or self._lab.seed != seed:
            options = self.options
            self._lab = SentenceLab(
                self.model, self.text, seed, self.layers, options.tokens, options.calibration_tokens
            )
        return self._lab

    def run(self, title: str, jobs: Sequence[Job], do: Callable[[Job], Result]) -> dict[str, Result]:
        """Do what is missing, one file after the other.

        Args:
            title: for the progress bar.
            jobs: all jobs of a section.
            do: computes the result of one.

        Returns:
            Name of the job → result, without those that do not apply; a note says why.

        Raises:
            InputError: if none applies.
        """
        missing = [] if self.options.report else self.store.missing(jobs)
        with show_progress(len(missing)) as progress:
            for done, job in enumerate(missing):
                progress.advance(f"{title}: {job.name}", done)
                try:
                    self.store.put(job, do(job))
                except InputError as error:
                    self.notes.append(f"{job.name} is left out: {error}")
        found = {job.name: self.store.find(job) for job in jobs}
        if jobs and not any(found.values()):
            raise InputError("; ".join(self.notes))
        return {name: result for name, result in found.items() if result is not None}


def mean_errors(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Every kind of error, averaged over layers."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
