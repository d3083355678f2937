"""The state of a run on disk: whole or not there, whenever the process dies."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ntkfusion.training.groups import Flat
from ntkfusion.training.step import TrainState

#: Updates after which a run is saved, beside every evaluation.
SAVE_STEPS = 500


@dataclasses.dataclass(frozen=True)
class Progress:
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


class StateStore:
    """Saves and restores runs with orbax.

    A save is written beside the last one and takes its place in one rename; the last one is deleted after that. Data
    order and dropout keys follow from the seed and the number of the update, so that state and number are everything.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made if need be; what an interrupted save left there is deleted."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells absl about every file
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def step(self) -> int | None:
        """Updates done at the last save; None without one."""
        return self._manager.latest_step()

    @property
    def run(self) -> str:
        """The digest of the run that was saved last."""
        found = self._manager.restore(self.step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))
        return found["facts"].get("run", "")

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save; nothing is written if this step is saved already.

        Args:
            state: what updates change.
            progress: where the run stands.
        """
        step = int(state.step)
        if self.step == step:
            return
        facts = {name: getattr(progress, name) for name in _FACTS}
        parts = ocp.args.Composite(
            arrays=ocp.args.StandardSave(_leaves((state, progress.best))), facts=ocp.args.JsonSave(facts)
        )
        self._manager.save(step, args=parts, force=True)

    def restore(self, state: TrainState, best: Flat) -> tuple[TrainState, Progress]:
        """The last save.

        Args:
            state: a state of the same run, for its shapes and dtypes.
            best: its parameters.

        Returns:
            State and progress, bit by bit as they were saved.
        """
        structure = jax.tree.structure((state, best))
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _leaves((state, best)).items()
        }
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore())
        found = self._manager.restore(self.step, args=parts)
        # copies: orbax's arrays may share memory with its reader, and updates take over what they are given
        arrays = [jnp.copy(found["arrays"][name]) for name in abstract]
        state, best = jax.tree.unflatten(structure, arrays)
        facts: dict[str, Any] = found["facts"] | {"history": tuple(found["facts"]["history"])}
        return state, Progress(best, **facts)

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()


_FACTS = tuple(field.name for field in dataclasses.fields(Progress) if field.name != "best")


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """Every array by its place."""
    return {f"{place:05}": leaf for place, leaf in enumerate(jax.tree.leaves(tree))}
