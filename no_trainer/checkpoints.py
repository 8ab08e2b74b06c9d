"""Opening the folder of a run, saving checkpoints, and resuming from them."""

import argparse
import json
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from datasets import Dataset

from no_trainer.batches import fingerprint
from no_trainer.checks import IN_USE, check_contents, trains
from no_trainer.commands import resume_command
from no_trainer.folder import BEST, checkpoints, clear, clear_aside, damage, hold, is_of, remove, seal
from no_trainer.glue import Task
from no_trainer.hub import make_repository
from no_trainer.launch import all_or_none, optional, say, together
from no_trainer.memory import is_out_of_memory
from no_trainer.messages import is_launched, show, stop
from no_trainer.models import weights_are_finite
from no_trainer.run import Progress, Run, end_trackers, read_losses, start_trackers
from no_trainer.signals import StopSignal

UNLIKELY_SEED = 6_755_399_441_055_744  # a seed that nobody uses


def fixed_settings(
    args: argparse.Namespace,
    task: Task,
    global_batch: int,
    warmup_steps: int,
    max_steps: int,
    train_data: Dataset,
    eval_data: dict[str, Dataset],
    model: str,
) -> dict[str, Any]:
    """The settings that must not change when a run is resumed, by name."""
    schedule = name_schedule(args, warmup_steps, max_steps)
    names = ("seed", "weight_decay", "max_grad_norm", "no_group_by_length")
    flags = {name: getattr(args, name) for name in names} | {"metric_for_best_model": task.best_metric}
    validation = " ".join(map(fingerprint, eval_data.values()))
    data = {"data": fingerprint(train_data), "validation_data": validation}
    return flags | {"global_batch_size": global_batch, "schedule": schedule} | data | {"model": model}


def steps_between_checkpoints(args: argparse.Namespace) -> int:
    """The number in --checkpointing_steps; 0 if checkpoints are saved after each epoch, or none is."""
    return int(args.checkpointing_steps) if args.checkpointing_steps not in (None, "epoch") else 0


def name_schedule(args: argparse.Namespace, warmup_steps: int, max_steps: int) -> str:
    """What decides the learning rate of each step; a constant schedule has no length."""
    warmup = "" if args.lr_scheduler_type == "constant" else f", {warmup_steps} warm-up steps"
    end = "" if args.lr_scheduler_type.startswith("constant") else f" of {max_steps}"
    return f"{args.lr_scheduler_type} from {args.learning_rate:g}{warmup}{end}"


def open_run(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    settings: dict[str, Any],
    steps_per_epoch: int,
    max_steps: int,
    table: str,
) -> Run:
    """Open --output_dir, resume if --resume_from_checkpoint is given, and start the trackers."""
    progress, repository = Progress(settings=settings), None
    if args.output_dir:
        if args.push_to_hub:
            first = accelerator.is_main_process
            made = all_or_none(accelerator, lambda: make_repository(args) if first else None)
            repository = broadcast_object_list([made])[0]
        # lock an existing folder before reading it; a new one is made when the run is sure to begin
        there = accelerator.is_main_process and Path(args.output_dir).is_dir()
        all_or_none(accelerator, lambda: claim(args) if there else None)
        checkpoint = choose_checkpoint(args, accelerator) if args.resume_from_checkpoint else None
        if checkpoint:
            progress = resume(args, accelerator, checkpoint, settings)
            if progress.step > max_steps:
                say(f"warning: {checkpoint} is of step {progress.step}, and this run would end at step {max_steps}")
        open_folder(args, accelerator, model, checkpoint)
        if args.with_tracking:
            start_trackers(accelerator, args, progress, resumed=bool(checkpoint))
        if accelerator.is_main_process and progress.step < max_steps:
            (Path(args.output_dir) / "all_results.json").unlink(missing_ok=True)  # the run is not over any more
    begun = time.perf_counter() - progress.seconds
    stop_signal, files = StopSignal(accelerator), {"log.jsonl"} if progress.step else set()
    known = {"repository": repository, "begun": begun, "files": files}
    return Run(args, accelerator, progress, stop_signal, steps_per_epoch, max_steps, table, **known)


def open_folder(
    args: argparse.Namespace, accelerator: Accelerator, model: torch.nn.Module, checkpoint: Path | None
) -> None:
    """Make --output_dir, clear it of other runs and restore the files of the checkpoint."""
    folder = Path(args.output_dir)
    together(accelerator, lambda: folder.mkdir(parents=True, exist_ok=True), folder)
    if not accelerator.is_main_process:
        return
    claim(args)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    needed, free = weights * (4 if args.checkpointing_steps else 1), shutil.disk_usage(folder).free
    if free < needed:
        stop(f"--output_dir {folder}: this run needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")
    clear_aside(folder)
    if (folder / "log.jsonl").exists() and not (checkpoint and is_of(checkpoint, folder)):  # a run to replace
        clear(folder, model=trains(args))
    if checkpoint:
        shutil.copy(checkpoint / "log.jsonl", folder / "log.jsonl")  # without later steps
        (folder / BEST).unlink(missing_ok=True)
        if args.load_best_model_at_end and (checkpoint / BEST).exists():
            shutil.copy(checkpoint / BEST, folder / BEST)


def claim(args: argparse.Namespace) -> None:
    """Lock --output_dir for this run and check it again: another run may have used it meanwhile."""
    if not hold(Path(args.output_dir)):
        stop(IN_USE.format(folder=args.output_dir))
    check_contents(Path(args.output_dir), args)


def choose_checkpoint(args: argparse.Namespace, accelerator: Accelerator) -> Path | None:
    """The checkpoint to resume from, for all processes; None if `latest` finds none."""
    first = accelerator.is_main_process
    found = all_or_none(accelerator, lambda: find_checkpoint(args) if first else None)
    checkpoint = broadcast_object_list([found and str(found)])[0]  # as text, which XLA needs
    none = f"{args.output_dir} has no checkpoint yet: the run starts from the beginning"
    say(f"going on from {checkpoint}" if checkpoint else none)
    return Path(checkpoint) if checkpoint else None


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The checkpoint of --resume_from_checkpoint; for `latest`, the newest whole one, if any."""
    given = args.resume_from_checkpoint
    if given != "latest":
        if wrong := damage(Path(given)):
            stop(f"--resume_from_checkpoint {given} is damaged: {wrong}; give an earlier one")
        return Path(given)
    found = checkpoints(Path(args.output_dir))
    for checkpoint in reversed(found):
        if not (wrong := damage(checkpoint)):
            return checkpoint
        say(f"warning: {checkpoint} is damaged: {wrong}; the one before is tried")
    if found:
        stop(f"--resume_from_checkpoint latest: every checkpoint in {args.output_dir} is damaged; start a new run")
    return None


def resume(args: argparse.Namespace, accelerator: Accelerator, checkpoint: Path, settings: dict) -> Progress:
    """Load what `save_checkpoint` saved, if its settings are those of this run."""
    try:
        progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
        for name, usual in vars(Progress()).items():
            if not isinstance(found := getattr(progress, name), type(usual)):
                raise TypeError(f"{name} is {found!r}")
        np.array(progress.recent, np.float64).reshape(len(progress.recent), 3)
    except (TypeError, ValueError) as error:
        stop(
            f"--resume_from_checkpoint {checkpoint}: its progress.json was written by another "
            f"version of this script ({error}); resume with that version"
        )
    for name, value in settings.items():
        if (was := progress.settings.get(name)) != value:
            flags = " (--learning_rate, --lr_scheduler_type, warm-up, and epochs or steps)" * (name == "schedule")
            stop(
                f"--resume_from_checkpoint {checkpoint}: {name} was {was} there and is {value} "
                f"here{flags}; take the same, or start a new run in another --output_dir"
            )
    if args.load_best_model_at_end and progress.best and not (checkpoint / BEST).exists():
        say("the weights of the best evaluation so far were not kept: the best from here on is saved")
        progress.best = {}
    torch.manual_seed(UNLIKELY_SEED)
    try:
        accelerator.load_state(checkpoint)
    except Exception as error:  # its files are as they were written, but not what this run would write
        if is_out_of_memory(error):
            raise
        stop(f"--resume_from_checkpoint {checkpoint} cannot be loaded: {type(error).__name__}: {error}")
    accelerator.step = 0  # counts batches of a device; a checkpoint is between two global batches
    on_cuda = accelerator.device.type == "cuda"
    seeds = {torch.initial_seed(), torch.cuda.initial_seed() if on_cuda else 0}
    lost = UNLIKELY_SEED in seeds  # Accelerate does not say when it cannot load the random state
    if lost and progress.processes == accelerator.num_processes:
        say(f"warning: {checkpoint}: the random state could not be loaded; dropout will differ")
    if lost or progress.processes != accelerator.num_processes:  # no random state to continue
        set_seed(args.seed + progress.step, device_specific=True)
    return progress


def save_checkpoint(run: Run, model: torch.nn.Module, name: str) -> None:
    """Save all that the rest of the run depends on; the folder gets its name when all is on the disk.

    If that fails, the run ends with exit code 1; after the last step, a warning is enough.
    """
    accelerator, progress, folder = run.accelerator, run.progress, Path(run.args.output_dir)
    read_losses(run)
    if not weights_are_finite(accelerator, model):
        stop(f"step {progress.step}: the weights are not finite; try a lower --learning_rate.", code=1)
    progress.processes = accelerator.num_processes
    progress.seconds = time.perf_counter() - run.begun
    aside = folder / f".{name}.partial"

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)  # in case somebody removed it
        accelerator.save_state(aside)
        if accelerator.is_main_process:
            text = json.dumps(asdict(progress), indent=2)
            (aside / "progress.json").write_text(text, encoding="utf-8")
            (folder / "log.jsonl").touch()
            for file in filter(Path.exists, (folder / "log.jsonl", folder / BEST)):
                shutil.copy(file, aside / file.name)

    if accelerator.is_main_process:
        remove(aside)
    accelerator.wait_for_everyone()
    needed, limit = progress.step < run.max_steps, run.args.save_total_limit
    if together(accelerator, write, aside, needed):
        together(accelerator, lambda: accelerator.is_main_process and seal(folder, name, limit), aside, needed)


def leave(run: Run, model: torch.nn.Module) -> NoReturn:
    """Save a checkpoint after a signal, print how to resume, and exit with the signal's code.

    After the end of training there is nothing to resume, and the weights may be the best, not the last.
    """
    number, name = run.stop_signal(), f"step_{run.progress.step}"
    said = signal.Signals(number).name
    if run.saved:
        say(f"{said}: the model and its results are in {show(run.args.output_dir)}; the predictions are not finished")
    elif run.args.output_dir and run.progress.step:
        save_checkpoint(run, model, name)
        launched = ", under the launcher that you used" * is_launched()
        command = resume_command(argv=run.args.argv)
        say(f"{said}: saved {Path(run.args.output_dir) / name}; to go on{launched}:\n{command}")
    else:
        why = "; nothing is saved without an --output_dir" * (not run.args.output_dir)
        say(f"{said}: stopped after step {run.progress.step}{why}")
    if is_launched():
        run.stop_signal.ignore()  # the launcher repeats it when one process has ended
    optional("a tracker could not be closed", end_trackers, run)
    sys.exit(128 + number)
