"""The state of a run on disk: whole or not there, whenever the process dies, and known by a digest of the run.

A digest is of everything that a result depends on; a store refuses to go on with another run.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from ntkfusion.data.tasks.task import Task
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.training.batches import TokenizedExamples
from ntkfusion.training.step import TrainState
from ntkfusion.utils.digests import digest, digest_text
from ntkfusion.utils.files import system_reason, writing
from ntkfusion.utils.locks import hold
from ntkfusion.utils.parameter_paths import Flat, flatten


def run_digest(facts: object, sets: Sequence[TokenizedExamples], arrays: Mapping[str, Array]) -> str:
    """What a training run depends on, in short.

    Args:
        facts: anything whose `repr` says all of it.
        sets: tokenised examples, in the order of their roles.
        arrays: parameters and constants by path.

    Returns:
        32 hexadecimal digits; any other bit gives others.
    """
    # an order of classes only where there is one: without it a run is known as before there were any
    ordered = [() if each.classes is None else (each.classes,) for each in sets]
    words = [
        repr((each.ids, each.types, each.padding, each.labels.tolist(), *order))
        for each, order in zip(sets, ordered, strict=True)
    ]
    return _digest([repr(facts), *words], arrays)


def model_digest(model: Model) -> str:
    """A model's architecture, parameters and constants in short, wherever they were loaded from."""
    return _digest([repr(model.config)], flatten(model.params) | flatten(model.constants))


def task_digest(task: Task) -> str:
    """A task's examples, classes and metrics in short."""
    splits = (task.train, task.dev, task.test)
    rows = [None if each is None else (each.first, each.second, each.labels.tolist()) for each in splits]
    return _digest([repr((task.labels, task.metrics, rows))], {})


def _digest(words: Sequence[str], arrays: Mapping[str, Array]) -> str:
    named = [(path, str(array.dtype), array.shape, digest(np.asarray(array))) for path, array in sorted(arrays.items())]
    return digest_text(repr((words, named)))


#: Updates after which a run is saved, beside every evaluation.
SAVE_STEPS = 500


@dataclasses.dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands beside its `TrainState`.

    Attributes:
        best: the parameters of the best evaluation so far; the first ones before there is one.
        history: what every evaluation found, in order, with its ``step``.
        best_step: updates done at the best evaluation.
        stale: evaluations since then.
        finished: whether training has ended.
        run: a digest of everything the run depends on, from `Run.digest`.
    """

    best: Flat
    history: tuple[dict[str, float], ...] = ()
    best_step: int = 0
    stale: int = 0
    finished: bool = False
    run: str = ""


@contextmanager
def _one_failure() -> Iterator[None]:
    """Hear of a failed save once: orbax's threads tell of every array, some long after the exception was raised."""
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not (isinstance(dropped.exc_value, RuntimeError) and "Event loop is closed" in str(dropped.exc_value)):
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    except BaseException:
        # what comes later is heard by the hook, which stays, and by these
        logging.getLogger("asyncio").addFilter(_is_news)
        warnings.filterwarnings("ignore", "coroutine .*write_fragment", RuntimeWarning)
        raise
    sys.unraisablehook = before


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message is of another failure than one that the system caused."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or system_reason(error) is None


class StateStore:
    """Saves and restores runs with orbax.

    A save is written beside the last one and takes its place in one rename; the last one is deleted after that. Data
    order and dropout keys follow from the seed and the number of the update, so that state and number are everything.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made if need be; what an interrupted save left there is deleted.

        No other process can use it until this store is closed or forgotten.

        Raises:
            OutputBusyError: if another process uses it.
            OutputWriteError: if it cannot be written.
        """
        self._folder = folder.absolute()
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells absl about every file, and every failure
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        with writing(f"training state in {folder}"):
            # of processes that compute together, the first one writes
            release = hold(self._folder) if jax.process_index() == 0 else lambda: None
            self._release = weakref.finalize(self, release)
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def step(self) -> int | None:
        """Updates done at the last save; None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: TrainingProgress) -> None:
        """Save; nothing is written if this step is saved already.

        Args:
            state: what updates change.
            progress: where the run stands.

        Raises:
            OutputWriteError: if the system refuses, as on a full disk; the last save stays.
        """
        step = int(state.step)
        if self.step == step:
            return
        facts = {name: getattr(progress, name) for name in _FACTS}
        parts = ocp.args.Composite(
            arrays=ocp.args.StandardSave(_leaves((state, progress.best))), facts=ocp.args.JsonSave(facts)
        )
        with writing(f"training state in {self._folder}"), _one_failure():
            self._manager.save(step, args=parts, force=True)

    def resume(self, state: TrainState, progress: TrainingProgress) -> tuple[TrainState, TrainingProgress]:
        """What was saved last, bit by bit; what is given where nothing was.

        Args:
            state: before the first update.
            progress: before it, with the run's digest.

        Returns:
            State and progress to go on from.

        Raises:
            InputError: if another run was saved here.
        """
        if self.step is None:
            return state, progress
        saved = self._manager.restore(self.step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
        if saved.get("run", "") != progress.run:
            raise InputError(
                "the state store holds another run: models, examples, recipe, groups or seed differ from this one's; "
                "go on with the same ones, or use an empty folder"
            )
        state, best = self._arrays((state, progress.best))
        return state, TrainingProgress(best, **(saved | {"history": tuple(saved["history"])}))

    def _arrays(self, like: tuple[TrainState, Flat]) -> tuple[TrainState, Flat]:
        """The arrays of the last save, which have the shapes and dtypes of these."""
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _leaves(like).items()
        }
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
        arrays = self._manager.restore(self.step, args=parts)["arrays"]
        # copies: orbax's arrays may share memory with its reader, and updates take over what they are given
        return jax.tree.unflatten(jax.tree.structure(like), [jnp.copy(arrays[name]) for name in abstract])

    def close(self) -> None:
        """Wait for what is being written, and let others use the folder."""
        try:
            self._manager.close()
        finally:
            self._release()


_FACTS = tuple(field.name for field in dataclasses.fields(TrainingProgress) if field.name != "best")


def _leaves(tree: object) -> dict[str, jax.Array]:
    """Every array by its place."""
    return {f"{place:05}": leaf for place, leaf in enumerate(jax.tree.leaves(tree))}
