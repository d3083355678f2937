"""A command that is interrupted, killed and given too little room: run as a module, with NAME DEED ….

NAME is one of `ntkfusion.commands.main`, DEED one of `DEEDS`; the working folder holds what `inputs_in` put there.
Prints what happened as JSON. Moments are events that Python audits (a file opened for writing, renamed, a folder made
or deleted) among the outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import ntkfusion as nf
from ntkfusion.commands.main import MODULES, main

#: Field of a command's options → a small value; a new command finds its own among them, or tyro says what it needs.
SMALL: dict[str, tuple[str, ...]] = {
    "method": ("svd",),
    "methods": ("svd",),
    "width": ("0.5",),
    "merge": (),
    "tokens": ("8",),
    "calibration_tokens": ("16",),
    "restarts": ("1",),
    "scope": ("block:0",),
    "checks": ("zero-residual",),
    "quick": (),
    "task": ("mine",),
    "train": ("train.csv",),
    "compress": ("svd",),
}
#: Of a field that is a group of options: the group's.
GROUPS = {"recipe": ("--max-length", "8", "--batch-size", "8", "--epochs", "2", "--learning-rate", "0.01")}

#: How many moments, limits and free spaces are tried.
TRIES = 3

#: Events that change something.
WRITES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.move", "shutil.rmtree")

INPUTS = ("tiny", "train.csv", "filler")


def writers() -> list[str]:
    """The commands that write."""
    return [each.__name__.lower() for each in MODULES if "out" in _fields(each)]


def can_resume(name: str) -> bool:
    """Whether a command goes on with what an interruption left."""
    return "resume" in _fields(_options(name))


def words(name: str, out: str) -> list[str]:
    """A small call of a command that writes `out`."""
    fields = _fields(_options(name))
    call = [name, *(["tiny"] if "model" in fields and name != "verify" else [])]
    out += ".npz" if name == "kernel" else ""
    call += [out] if fields["out"].default is dataclasses.MISSING else ["--out", out]
    for field in fields:
        call += [f"--{field.replace('_', '-')}", *SMALL[field]] if field in SMALL else []
        call += GROUPS.get(field, ())
    return call


def _options(name: str) -> type:
    return next(each for each in MODULES if each.__name__.lower() == name)


def _fields(options: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(options)}


def inputs_in(folder: Path, tokenizer: object) -> None:
    """What small calls read: a random model of one layer, and a table of a task."""
    config = nf.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=30522,
        max_position_embeddings=64,
    )
    nf.save_model(dataclasses.replace(nf.random_model(config, seed=1), tokenizer=tokenizer), folder / "tiny")
    rows = [f"{'a good day' if i % 2 else 'the bad film'} number {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")


def run(call: list[str]) -> dict[str, object]:
    """What a command did in this process: its exit code, its errors, and what is in the folder now."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(call)
        except SystemExit as ending:
            code = ending.code
    left = sorted(path.name for path in Path().iterdir() if path.name not in INPUTS)
    return {"code": code, "said": said.getvalue(), "left": left}


def clear() -> None:
    """Delete all outputs."""
    for path in Path().iterdir():
        if path.name not in INPUTS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def files_of(out: str) -> dict[str, Path]:
    """Every file of a result, by its name there."""
    found = [*Path(out).rglob("*"), *(path for path in Path().iterdir() if path.name.startswith(f"{out}."))]
    found += [path for path in Path().iterdir() if path.name.startswith(f"{out}_")]
    return {str(path).removeprefix(out): path for path in found if path.is_file()}


def weights_of(out: str) -> str:
    """All weights that a result holds, as text that any other bit changes."""
    return repr({name: path.read_bytes().hex() for name, path in files_of(out).items() if name.endswith("tensors")})


class Moments:
    """Counts events among the outputs, and does something at one of them."""

    def __init__(self) -> None:
        self.seen, self.last, self.deed = 0, 0, lambda: None
        sys.addaudithook(self._hear)

    def at(self, last: int, deed: Callable[[], None] = lambda: None) -> None:
        """Begin to count."""
        self.seen, self.last, self.deed = 0, last, deed

    def _hear(self, event: str, arguments: tuple) -> None:
        if event not in WRITES or not arguments or not _is_output(arguments[0]):
            return
        if event == "open" and not _writes(*arguments[1:3]):
            return
        self.seen += 1
        if self.seen == self.last:
            self.deed()


def _is_output(path: object) -> bool:
    if not isinstance(path, str | os.PathLike):
        return False
    return "out" in Path(os.path.relpath(path)).parts[:1][0] if os.path.relpath(path) != "." else False


def _writes(mode: str | None, flags: int | None) -> bool:
    return bool(set(mode or "") & set("wa+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


def spread(count: int) -> list[int]:
    """Moments among so many, from the first to the last."""
    most = max(1, 9 * count // 10)  # threads tell a few more or less each time: the last moment is well inside
    return sorted({1 + round(part * (most - 1) / (TRIES - 1)) for part in range(TRIES)})


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """So many bytes are free on this small file system."""
    free = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize
    with Path("filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(1, free - room))
    try:
        yield
    finally:
        Path("filler").unlink()


def then(name: str, out: str) -> dict[str, object]:
    """What the command does next without trouble: it goes on, or begins anew."""
    after = run([*words(name, out), "--resume" if can_resume(name) else "--overwrite"])
    return after | {"weights": weights_of(out)}


def whole(name: str) -> dict[str, object]:
    """A call without trouble; its files stay."""
    return run(words(name, "out")) | {"weights": weights_of("out"), "files": sorted(files_of("out"))}


def troubled(name: str, trouble: contextlib.AbstractContextManager[None], out: str) -> dict[str, object]:
    """A call in trouble, and the next one."""
    with trouble:
        during = run(words(name, out))
    return {"during": during | {"files": sorted(files_of(out))}, "after": then(name, out)}


def limits(name: str) -> list[dict[str, object]]:
    """Files that cannot grow as they should: one run for some of the sizes that there are in a whole result."""
    first = whole(name)
    sizes = sorted({path.stat().st_size for path in files_of("out").values()} - {0})
    chosen = [int(np.quantile(sizes, part / (TRIES - 1), method="nearest")) - 1 for part in range(TRIES)]
    clear()
    tried = []
    for size in sorted(set(chosen)):
        tried.append({"first": first, "limit": size, **troubled(name, small_files(size), "out")})
        clear()
    return tried


def full(name: str) -> list[dict[str, object]]:
    """A disk that is full from the beginning, or after a part of what is to be written."""
    first = whole(name)
    size = sum(path.stat().st_size for path in files_of("out").values())
    clear()
    tried = []
    for part in range(TRIES):
        tried.append({"first": first, **troubled(name, full_disk(size * part // TRIES), "out")})
        clear()
    return tried


def interrupts(name: str) -> list[dict[str, object]]:
    """Ctrl-C at some moments of writing."""
    moments = Moments()
    moments.at(0)
    first, count = whole(name), moments.seen
    clear()
    tried = []
    for moment in spread(count):
        # once: the next call is left alone
        moments.at(moment, lambda: moments.at(0) or os.kill(os.getpid(), signal.SIGINT))
        tried.append({"first": first, **troubled(name, contextlib.nullcontext(), "out")})
        clear()
    return tried


def count(name: str) -> dict[str, object]:
    """How many moments there are."""
    moments = Moments()
    moments.at(0)
    first = whole(name)
    seen = moments.seen
    clear()
    return {"first": first, "moments": spread(seen)}


def kill(name: str, moment: str, out: str) -> None:
    """Die at a moment."""
    Moments().at(int(moment), lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(words(name, out))


def after(name: str, *outs: str) -> list[dict[str, object]]:
    """What the command makes of what dead processes left."""
    found = []
    for out in outs:
        there = {key: path.stat().st_size for key, path in files_of(out).items()}
        found.append({"there": there, **then(name, out)})
    return found


DEEDS = {each.__name__: each for each in (whole, limits, full, interrupts, count, kill, after)}

if __name__ == "__main__":
    print(json.dumps(DEEDS[sys.argv[2]](sys.argv[1], *sys.argv[3:])))
