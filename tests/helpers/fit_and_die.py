"""A training run that kills itself at a moment of its third save: ``python fit_and_die.py FOLDER EVENT``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ntkfusion.training.fine_tuning import fit
from ntkfusion.training.store import StateStore
from tests.helpers.tiny_training import RECIPE, tiny_model, tiny_task


class Dying(StateStore):
    """A store in whose third save the process dies."""

    saves = seen = 0

    def save(self, state, progress):
        Dying.saves += 1
        super().save(state, progress)
        Dying.saves += 0.5 if Dying.saves == 3 else 0


def main(folder, last_event):
    def count(event, arguments):
        if Dying.saves == 3 and event.split(".")[0] in ("open", "os", "shutil"):
            Dying.seen += 1
            if Dying.seen == last_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    fit(tiny_model(), tiny_task(), RECIPE, seed=1, store=Dying(folder), save_steps=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
