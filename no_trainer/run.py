"""The state of a run: its folder, progress, log and trackers."""

import argparse
import datetime
import json
import math
import os
import shutil
import sys
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from no_trainer.commands import without_secrets
from no_trainer.glue import Task
from no_trainer.launch import optional, say
from no_trainer.messages import many, stop
from no_trainer.metrics import numbers_in
from no_trainer.signals import StopSignal


@dataclass
class Progress:
    """How far the run has come; saved with every checkpoint."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # epochs completed and evaluated
    batch: int = 0  # global batches done in this epoch, even if skipped by the fp16 scaler
    # learning rate, mean loss and gradient norm of each global batch since the last line of the log
    recent: list[list[float]] = field(default_factory=list)
    loss_total: float = 0.0  # the sum of all global batches' losses up to the last line of the log
    loss_count: int = 0
    processes: int = 1
    seconds: float = 0.0  # of training and evaluation
    results: dict[str, Any] = field(default_factory=dict)  # of the last evaluation
    best: dict[str, Any] = field(default_factory=dict)  # of the best one
    waited: int = 0  # evaluations since the best one
    settings: dict[str, Any] = field(default_factory=dict)  # what a resumed run must not change
    run: str = field(default_factory=lambda: os.urandom(4).hex())  # its name for trackers


@dataclass
class Run:
    """A run: its flags, devices and progress, and what it has to save and report."""

    args: argparse.Namespace
    accelerator: Accelerator
    progress: Progress
    stop_signal: StopSignal
    steps_per_epoch: int
    max_steps: int  # of the whole run
    table: str  # of the data
    repository: str | None = None  # on the hub
    begun: float = field(default_factory=time.perf_counter)  # moved back by the seconds of the run before a resume
    mark: tuple[int, float] = (0, 0.0)  # step and time from which the speed is measured
    unread: list[tuple] = field(default_factory=list)  # rate, loss and norm, still on the device
    uploads: list[Future] = field(default_factory=list)
    files: set[str] = field(default_factory=set)  # that this run has written, to be uploaded
    predictions: dict[str, tuple] = field(default_factory=dict)  # logits and labels of each validation split
    saved: bool = False  # whether the model is in --output_dir, with all_results.json
    has_best: bool = False  # whether the weights are those of the best evaluation, no longer of the last step
    mistakes: list[str] = field(default_factory=list)  # the worst wrong predictions, in words

    def start_clock(self) -> None:
        """Measure the speed from here on."""
        self.mark = (self.progress.step, time.perf_counter())

    def position(self) -> dict[str, float]:
        progress = self.progress
        epochs = progress.epoch + progress.batch / self.steps_per_epoch
        return {"step": progress.step, "epoch": epochs}

    def goes_on(self) -> bool:
        """Whether a step is left to take or, after a resume, the evaluation after the last step is missing.

        With --max_train_steps, steps that the fp16 scaler skips may take another epoch.
        """
        progress = self.progress
        if progress.step < self.max_steps:
            return bool(self.args.max_train_steps) or progress.epoch * self.steps_per_epoch < self.max_steps
        return progress.step == self.max_steps > 0 and progress.results.get("step") != progress.step

    def end_epoch(self) -> int:
        """Count the epoch, unless --max_train_steps has ended it early; returns its number, from 0."""
        epoch = self.progress.epoch
        if self.progress.batch == self.steps_per_epoch:
            self.progress.epoch, self.progress.batch = epoch + 1, 0
        return epoch


def plan_schedule(args: argparse.Namespace, max_steps: int) -> tuple[int, int]:
    """The numbers of warm-up steps and of all steps, for transformers' `get_scheduler`."""
    warmup = args.num_warmup_steps
    if warmup is None:  # at least one step has the full learning rate
        warmup = max(0, min(math.ceil(args.warmup_ratio * max_steps), max_steps - 1))
    elif warmup >= max_steps > 0:
        say(f"warning: --num_warmup_steps {warmup}: the run has {max_steps} steps and never reaches --learning_rate")
    return warmup, max(max_steps, warmup + 1)  # the polynomial schedule divides by the difference


def read_losses(run: Run) -> None:
    """Copy the latest losses from the device, the only place where the loop waits for it.

    Raises:
        SystemExit: 1, if a loss or a gradient is not finite.
    """
    if not run.unread:
        return
    progress = run.progress
    rates, losses, norms = zip(*run.unread, strict=True)
    rates = [float(rate) for rate in rates]
    losses = run.accelerator.reduce(torch.stack(losses), "mean").tolist()
    norms = torch.stack([torch.as_tensor(norm) for norm in norms]).tolist()
    scaled = run.accelerator.scaler is not None  # the fp16 scaler handles infinite gradients
    for index, (rate, loss, norm) in enumerate(zip(rates, losses, norms, strict=True)):
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
            step = progress.step - len(losses) + index + 1
            before = f"; the step before had loss {progress.recent[-1][1]:.4g}" if progress.recent else ""
            stop(
                f"step {step}: the loss is {loss:.4g} and the gradient norm {norm:.4g}, at learning rate "
                f"{rate:.4g}{before}. The usual causes: a --learning_rate too high for this model (try a "
                "tenth), too short a warm-up (--warmup_ratio 0.2), fp16 (try --mixed_precision bf16), or "
                "weights that were broken before.",
                code=1,
            )
        progress.recent.append([rate, loss, norm])
    run.unread.clear()


def log_losses(run: Run, bar: tqdm) -> None:
    """Log the mean loss since the last line, and print it beside the progress bar or on a line."""
    read_losses(run)
    progress = run.progress
    rates, losses, norms = zip(*progress.recent, strict=True)
    progress.loss_total += sum(losses)
    progress.loss_count += len(losses)
    progress.recent = []
    line = {"loss": sum(losses) / len(losses), "learning_rate": rates[-1], "grad_norm": norms[-1]}

    (step, begun), run.mark = run.mark, (progress.step, time.perf_counter())
    seconds = (run.mark[1] - begun) / max(progress.step - step, 1)  # for a step
    speed = progress.settings["global_batch_size"] / seconds
    loss, rate = f"{line['loss']:.4f}", f"{line['learning_rate']:.2e}"
    narrow = {"loss": loss, "lr": rate}
    wide = {"rows/s": f"{speed:.0f}", "MB": f"{peak_memory(run.accelerator) / 1e6:,.0f}"}
    bar.set_postfix(narrow | (wide if shutil.get_terminal_size().columns >= 100 else {}))
    if bar.disable:  # no terminal
        left = datetime.timedelta(seconds=round((run.max_steps - progress.step) * seconds))
        say(
            f"step {progress.step} of {run.max_steps}: loss {loss}, learning rate {rate}, "
            f"{speed:.0f} rows a second, {left} left, {wide['MB']} MB"
        )
    log(run, run.position() | line, speed)


def peak_memory(accelerator: Accelerator) -> int:
    """The peak memory in bytes: of tensors on a GPU, of the process on a CPU; 0 if unknown."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def log(run: Run, line: dict[str, Any], speed: float | None = None) -> None:
    """Write a line to log.jsonl and the trackers; `speed`, which varies, only to those."""
    line = numbers_in(line)
    if run.args.output_dir and run.accelerator.is_main_process:
        file = Path(run.args.output_dir) / "log.jsonl"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)  # in case somebody removed it
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
            run.files.add(file.name)
        except OSError as error:
            if run.progress.step < run.max_steps:
                stop(f"{file} could not be written: {error}.", code=1)
            say(f"warning: {file} could not be written: {error}")  # the model is not saved yet
    if run.args.with_tracking:
        extra = {"samples_per_second": speed} if speed else {}
        shown = {name: value for name, value in line.items() if name != "step"} | extra
        optional("a tracker failed", run.accelerator.log, shown, step=line["step"])


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl."""
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def start_trackers(accelerator: Accelerator, args: argparse.Namespace, progress: Progress, resumed: bool) -> None:
    """Start the trackers with the flags, except secrets; a resumed run continues its curves."""
    folder = Path(args.output_dir) / "glue_no_trainer"
    same = {"name": f"{Path(args.output_dir).name}-{progress.run}", "resume": "allow"}
    options = {"wandb": same | {"id": progress.run, "dir": str(folder)}, "trackio": same}
    if resumed:  # remove what came after the checkpoint
        options["tensorboard"] = {"purge_step": progress.step}
    plain = {flag: v for flag, v in vars(args).items() if isinstance(v, (str, int, float))}
    shown = {flag: v for flag, v in plain.items() if "token" not in flag}
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
    own, sys.argv = sys.argv, without_secrets(sys.argv)  # Weights & Biases records it
    try:
        accelerator.init_trackers("glue_no_trainer", None if resumed else shown, options)
    except Exception as error:  # each tracker raises its own
        why = f"{type(error).__name__}: {error}; another tracker: --report_to tensorboard"
        stop(f"--report_to {args.report_to}: {why}")
    finally:
        sys.argv = own
    if resumed and accelerator.is_main_process and "tensorboard" in map(str, accelerator.log_with):
        for line in read_log(Path(args.output_dir)):
            if (step := line.pop("step")) == progress.step:  # purged, too
                accelerator.get_tracker("tensorboard").log(line, step=step)


def end_trackers(run: Run) -> None:
    """Finish the trackers. The processes stay connected, since another run may follow in them."""
    for tracker in run.accelerator.trackers:
        tracker.finish()


def out_of_patience(run: Run, task: Task) -> bool:
    """Whether --early_stopping_patience is used up; if so, print that."""
    over = run.progress.waited >= (run.args.early_stopping_patience or math.inf)
    if over:
        times = many(run.progress.waited, "evaluation")
        say(f"early stopping: {task.best_metric} did not improve in {times}")
    return over
