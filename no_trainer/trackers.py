"""Experiment trackers, beside log.jsonl."""

import argparse
import json
import sys
from pathlib import Path

from accelerate import Accelerator

from no_trainer.messages import stop, without_token
from no_trainer.run import Progress, Run


def start_trackers(accelerator: Accelerator, args: argparse.Namespace, progress: Progress, resumed: bool) -> None:
    """Open the trackers with the flags, but for secrets; after a resume they go on with the curves that they have."""
    folder = Path(args.output_dir) / "glue_no_trainer"
    same = {"name": f"{Path(args.output_dir).name}-{progress.run}", "resume": "allow"}
    options = {"wandb": same | {"id": progress.run, "dir": str(folder)}, "trackio": same}
    if resumed:  # forget what came after the checkpoint
        options["tensorboard"] = {"purge_step": progress.step}
    shown = {flag: v for flag, v in vars(args).items() if isinstance(v, (str, int, float)) and "token" not in flag}
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
    own, sys.argv = sys.argv, without_token(sys.argv)  # Weights & Biases writes it down
    try:
        accelerator.init_trackers("glue_no_trainer", None if resumed else shown, options)
    except Exception as error:  # each tracker has its own
        why = f"{type(error).__name__}: {error}; another tracker: --report_to tensorboard"
        stop(f"--report_to {args.report_to}: {why}")
    finally:
        sys.argv = own
    if resumed and "tensorboard" in map(str, accelerator.log_with):  # the lines of the checkpoint's own step went too
        lines = (Path(args.output_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        for line in filter(lambda line: line["step"] == progress.step, map(json.loads, lines)):
            accelerator.get_tracker("tensorboard").log(line, step=line.pop("step"))


def end_trackers(run: Run) -> None:
    """Write down what the trackers still hold. The processes stay connected: another run may follow in them."""
    for tracker in run.accelerator.trackers:
        tracker.finish()
