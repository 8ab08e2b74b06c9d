"""Time this script's checkpoints against Accelerate's `save_state` alone, in turn in the same run.

    python benchmarks/checkpoint.py --model MODEL

Prints one Markdown table of seconds. A checkpoint is on the disk, with its checksums, when the loop goes on.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scale import write_rows
from speed import ROOT, table

sys.path.insert(0, str(ROOT))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a hub id or a folder")
    parser.add_argument("--checkpoints", type=int, default=15, help="of each kind")
    parser.add_argument("--output_dir", type=Path, help="on the disk to be measured (default: the temporary folder)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import torch

    import run_glue_no_trainer as script

    times: dict[str, list[float]] = {"save_state": [], "checkpoint": []}
    save = script.save_checkpoint

    def both(run: script.Run, model: torch.nn.Module, name: str) -> None:
        def alone() -> None:
            os.sync()
            begun = time.perf_counter()
            run.accelerator.save_state(folder / "alone")
            times["save_state"].append(time.perf_counter() - begun)
            shutil.rmtree(folder / "alone")

        def ours() -> None:
            os.sync()
            begun = time.perf_counter()
            save(run, model, name)
            times["checkpoint"].append(time.perf_counter() - begun)

        for one in (alone, ours) if len(times["checkpoint"]) % 2 else (ours, alone):
            one()

    with tempfile.TemporaryDirectory(dir=args.output_dir) as name:
        folder = Path(name)
        write_rows(folder / "train.csv", 100, ["a", "few", "words"])
        write_rows(folder / "validation.csv", 16, ["a", "few", "words"])
        script.save_checkpoint = both
        flags = ["--model_name_or_path", args.model, "--train_file", str(folder / "train.csv"), "--validation_file"]
        flags += [str(folder / "validation.csv"), "--max_train_steps", str(args.checkpoints)]
        flags += ["--checkpointing_steps", "1", "--save_total_limit", "1", "--output_dir", str(folder / "out")]
        script.main(script.parse_args(flags))
    least = statistics.median(times["save_state"])
    rows = [
        {"what": what, "median s": middle, "fastest s": min(of), "ratio of medians": middle / least}
        for what, of in times.items()
        if (middle := statistics.median(of))
    ]
    print(table(rows, ["what", "median s", "fastest s", "ratio of medians"]))


if __name__ == "__main__":
    main()
