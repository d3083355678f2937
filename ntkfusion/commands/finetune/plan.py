"""What ``ntkfusion finetune`` is asked to do, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ntkfusion.checkpoints.save import check_request
from ntkfusion.commands.conditions import flat_fields
from ntkfusion.commands.finetune.options import Finetune
from ntkfusion.commands.request import check_fits_format, check_seed, flag, results_path
from ntkfusion.compression.contract import Method
from ntkfusion.compression.registry import build_method
from ntkfusion.data.tasks.label_order import check_order
from ntkfusion.data.tasks.load import TASKS, load_task, read_task
from ntkfusion.data.tasks.task import Task
from ntkfusion.errors import InputError, OutputExistsError
from ntkfusion.training.optimizer import Group
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.trackers import summary_writer
from ntkfusion.utils.files import MARKER, Json, Output, read_json

#: The request of a run, in its folder: what `--resume` must find unchanged.
REQUEST = "request.json"

#: Written last: the run is finished.
RESULTS = "results.json"

#: Of a seed, in its folder; written when it is finished.
RESULT = "result.json"

#: Options that do not change what a run computes; another format may save what a first one could not.
FREE = ("resume", "overwrite", "out", "tensorboard", "format", "merge")

#: What had no option before version 0.1.0, and which every run had as it is by default.
UNASKED = {name: getattr(Recipe, name) for name in ("num_buckets", "optimizer", "power", "b1", "b2", "eps")} | {
    "new_head": False,
    "label_order": [],
    "ignore_adapter": False,
}


@dataclasses.dataclass(frozen=True)
class FinetunePlan:
    """A checked request.

    Attributes:
        options: as they were given.
        recipe: the hyper-parameters.
        groups: frozen parameters (`--freeze`), and those with rates of their own.
        method: the compression, or None.
        task: the examples.
        output: where results go: a folder that fills while the seeds run.
        steps: none; every training counts its updates.
    """

    options: Finetune
    recipe: Recipe
    groups: tuple[Group, ...]
    method: Method | None
    task: Task
    output: Output
    steps: None = None

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.output.folder


def plan(options: Finetune) -> FinetunePlan:
    """Check everything that can be checked without the model, and read the task.

    Raises:
        InputError: for options out of range, an unknown method, or a task that cannot be read.
        OutputExistsError: if earlier results would be replaced that must not be, or `--resume` finds another request.
    """
    _check_options(options)
    # made anew, which checks it: the command line's own recipe checks nothing
    recipe, groups = Recipe(**vars(options.recipe)), _groups(options)
    method = None if options.compress is None else build_method(options.compress, options.width)
    if method is not None:
        asked = f"--compress {options.compress}"
        check_fits_format(method, asked, format=options.format, merge=options.merge, or_none=True)
    folder = results_path(options.out, f"finetune-{Path(options.model).name}-{options.task}")
    output = Output(folder, overwrite=options.overwrite, grows=True)
    check_folder(output, options)
    task = _task(options)
    if options.label_order:
        check_order(options.label_order, task.labels)
    task = task.subsampled(train=options.max_train, dev=options.max_dev, seed=min(options.seeds))
    return FinetunePlan(options, recipe, groups, method, task, output)


def _check_options(options: Finetune) -> None:
    if not options.seeds or len(set(options.seeds)) != len(options.seeds):
        raise InputError(f"--seeds takes at least one seed, each once; got {' '.join(map(str, options.seeds))}")
    for seed in options.seeds:
        check_seed(seed)
    if options.train is None and (options.dev is not None or options.test is not None):
        raise InputError("--dev and --test are for a task of your own, which --train gives")
    if options.train is None and options.labels != "auto":
        raise InputError("--labels is for a task of your own, which --train gives; those of GLUE are known")
    if options.train is not None and options.task in TASKS:
        raise InputError(f"{options.task} is a task of GLUE; give your own (--train) another name")
    if options.tune_layers and options.compress is None:
        raise InputError("--tune-layers trains compressed blocks to be like the original's; it needs --compress")
    if options.resume and options.overwrite:
        raise InputError("--resume goes on with what is there, --overwrite replaces it: give one of them")
    if options.new_head and options.label_order:
        raise InputError("--label-order says what the outputs of the checkpoint's head are, --new-head replaces it")
    if options.tensorboard:
        summary_writer()
    if options.probe and options.freeze:
        raise InputError("--probe freezes everything but the head already: leave out --freeze")


def _groups(options: Finetune) -> tuple[Group, ...]:
    groups = [Group(pattern, 0.0) for pattern in options.freeze]
    for text in options.rates:
        pattern, _, factor = text.rpartition("=")
        try:
            rate = float(factor)
        except ValueError:
            rate = -1.0
        if not pattern or not 0 <= rate < float("inf"):
            raise InputError(f"--rates takes PATTERN=FACTOR, such as '*/mlp/*=0.5'; got {text!r}")
        groups.append(Group(pattern, rate))
    return tuple(groups)


def _task(options: Finetune) -> Task:
    if options.train is None:
        return load_task(options.task, data_dir=options.data_dir, seed=min(options.seeds))
    return read_task(
        options.train,
        options.dev,
        options.test,
        text=options.text,
        pair=options.pair,
        label=options.label,
        name=options.task,
        regression={"auto": None, "classes": False, "scores": True}[options.labels],
        seed=min(options.seeds),
    )


def request_of(options: Finetune) -> Json:
    """Every option that decides the result, as JSON has it.

    All names stand side by side, and what is never done is 0, as when the recipe's names were options of their own.
    """
    values = {name: value for name, value, _ in flat_fields(options) if name not in FREE}
    values |= {name: values[name] or 0 for name in ("clip_norm", "patience")}
    values["no_dropout"] = not values.pop("dropout")
    return json.loads(json.dumps(values, default=str))


def check_folder(output: Output, options: Finetune) -> None:
    """Refuse a folder with another run than the one that is asked for.

    Raises:
        InputError: if it cannot be written.
        OutputExistsError: if earlier results would be replaced that must not be, or `--resume` finds another request.
    """
    folder = output.folder
    if options.format != "none":
        check_request(folder / "model", format=options.format, dtype=None, overwrite=True)
    if not options.resume:
        if _is_unfinished(folder) and not options.overwrite:
            raise OutputExistsError(
                f"{folder} holds a run that was interrupted: pass --resume to go on with it, --overwrite to begin anew"
            )
        output.check()
        return
    # a run may have ended, as on a full disk, before it could say what it was
    if not folder.exists() or ((folder / MARKER).exists() and all(path.name[0] == "." for path in folder.iterdir())):
        return
    if not (folder / MARKER).exists() or not (folder / REQUEST).exists():
        raise OutputExistsError(f"{folder} holds no run of ntkfusion finetune that --resume could go on with")
    # what an earlier version had no option for was as it is by default
    before, now = UNASKED | read_json(folder / REQUEST), request_of(options)
    changed = [name for name in now if before.get(name) != now[name] and not (name == "seeds" and _more(before, now))]
    if changed:
        shown = ", ".join(f"{flag(name)} was {before.get(name)}, is {now[name]}" for name in changed)
        raise OutputExistsError(f"{folder} holds a run with other options ({shown}); --resume goes on with the same")


def _is_unfinished(folder: Path) -> bool:
    """Whether a run there lacks a seed, one that was added later included."""
    if not (folder / REQUEST).exists():
        return False
    seeds = read_json(folder / REQUEST).get("seeds", ())
    return not (folder / RESULTS).exists() or not all((folder / f"seed-{seed}" / RESULT).exists() for seed in seeds)


def _more(before: Json, now: Json) -> bool:
    """Whether seeds were added; the smallest one chooses the examples."""
    old, new = set(before.get("seeds", ())), set(now["seeds"])
    return old <= new and min(old, default=None) == min(new)
