"""The parent's side: contestants in processes of their own, by turns, each within the same memory and time.

Whatever happens to a contestant (too much memory, too much time, an error, a crash) becomes an `RaceOutcome`.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks.kernels.outcome import MEMORY_SIGNS, Entrant, Limits, RaceOutcome, Status
from experiments.benchmarks.process_memory import memory_of
from experiments.common.store import Result
from ntkfusion.utils.memory import show_size

#: Seconds between two looks at a contestant's memory.
POLL = 0.02
#: Seconds for imports, weights and inputs, which are not part of any limit.
PREPARATION = 600.0


class StoppedError(Exception):
    """A contestant that will not finish."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class Contestant:
    """A process that has prepared one contestant."""

    def __init__(self, entry: Entrant, limits: Limits) -> None:
        self.limits, self.outcome, self._line = limits, RaceOutcome(entry.label), b""
        flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={entry.devices}"]
        home = str(Path(__file__).parents[3])
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join(flags if entry.devices > 1 else flags[:1]),
            "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
        }
        # the process outlives this method, and so does the file it complains into
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "experiments.benchmarks.kernels.worker"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment)
        try:
            self.outcome.baseline = self._ask(entry.spec, PREPARATION)["baseline"]
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Compute once and note what it took."""
        reply, outcome = self._ask({"do": "run"}, self.limits.seconds), self.outcome
        if outcome.first != outcome.first:
            outcome.first = reply["seconds"]
        else:
            outcome.seconds.append(reply["seconds"])
            outcome.compiling.append(reply["compiling"])
            outcome.working = max(outcome.working, reply["peak"] - reply["held"])
        self._check_memory(reply["peak"])

    def fetch(self) -> None:
        """Bring the last result over."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.npy"
            self._ask({"do": "save", "path": str(path)}, PREPARATION)
            self.outcome.result = np.load(path)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream:
                stream.close()

    def _ask(self, request: Mapping[str, object], seconds: float) -> Result:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        deadline = time.monotonic() + seconds
        while not self._line.endswith(b"\n"):
            self._check_memory(memory_of(self._process.pid)[1])
            if time.monotonic() > deadline:
                raise StoppedError("time", f"over {seconds:.3g} s")
            if select.select([stdout], [], [], POLL)[0]:
                part = os.read(stdout.fileno(), 1 << 16)
                if not part:
                    raise self._death()
                self._line += part
        reply, self._line = json.loads(self._line), b""
        if "error" in reply:
            raise self._too_much(reply["error"]) if reply["memory"] else StoppedError("error", reply["error"])
        return reply

    def _check_memory(self, peak: int) -> None:
        self.outcome.peak = max(self.outcome.peak, peak)
        if peak > self.limits.memory:
            raise self._too_much("")

    def _too_much(self, message: str) -> StoppedError:
        asked = re.search(r"allocating (\d+) bytes", message)
        needed = max(self.limits.memory, int(asked[1]) if asked else 0)
        tail = f" ({' '.join(message.split())[:160]})" if message and not asked else ""
        return StoppedError("memory", f"does not fit (needed > {show_size(needed)}){tail}")

    def _death(self) -> StoppedError:
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        # nobody here has killed it yet: that is how the system reclaims memory
        if code == -signal.SIGKILL or MEMORY_SIGNS.search(text):
            return self._too_much("ended by the system or the allocator")
        return StoppedError("error", f"process ended with code {code}: {' '.join(text[-300:].split())}")


def race(entries: Sequence[Entrant], repeats: int, limits: Limits, *, results: bool = False) -> list[RaceOutcome]:
    """Run contestants by turns: all prepare, all make their first call, then `repeats` rounds.

    Args:
        entries: the contestants.
        repeats: rounds after the first call.
        limits: what each may take; who exceeds them is out, the others go on.
        results: bring the kernels over.

    Returns:
        One outcome per contestant, in their order.
    """
    outcomes, running = {}, {}
    try:
        for place, entry in enumerate(entries):
            try:
                running[place] = Contestant(entry, limits)
                outcomes[place] = running[place].outcome
            except StoppedError as stopped:
                outcomes[place] = RaceOutcome(entry.label, stopped.status, stopped.reason)
        for turn in range(1 + repeats):
            for place in list(running):
                _turn(running, place, entries[place].calls, results and turn == 0)
    finally:
        for contestant in running.values():
            contestant.close()
    return [outcomes[place] for place in range(len(entries))]


def _turn(running: dict[int, Contestant], place: int, calls: int, fetch: bool) -> None:
    contestant = running[place]
    try:
        for _ in range(calls):
            contestant.run()
        if fetch:
            contestant.fetch()
    except StoppedError as stopped:
        contestant.outcome.status, contestant.outcome.reason = stopped.status, stopped.reason
        running.pop(place).close()
