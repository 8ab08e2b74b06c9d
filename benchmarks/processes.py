"""What the number of processes costs and what it does not change: one global batch, shared by 1, 2, 4 and 8 of them.

    python benchmarks/processes.py --model MODEL

Made rows of 5 to 60 words, cut at 64 tokens; dropout is off, so that the losses can be compared. Prints two Markdown
tables: for each number of processes the time of a step, the peak memory of a process, what one process sends and
receives in a step (the gradients, float32, by a ring) and the loss furthest from that of one process; and for the
number of rows what the order of an epoch costs in each process. The cores are shared out among the processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from scale import write_rows
from speed import ROOT, table

sys.path.insert(0, str(ROOT))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a hub id or a folder")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--batch", type=int, default=32, help="the global batch")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", nargs="+", type=int, default=[10**5, 10**6, 10**7], help="of the second table")
    return parser.parse_args()


def without_dropout(model: str, folder: Path) -> tuple[Path, int]:
    """A copy of the model that has no dropout, and its number of parameters."""
    from transformers import AutoModel, AutoTokenizer

    loaded = AutoModel.from_pretrained(model)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        if hasattr(loaded.config, name):
            setattr(loaded.config, name, 0.0)
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder, loaded.num_parameters()


def run(processes: int, flags: list[str], out: Path, batch: int) -> tuple[list[dict], list[float]]:
    """What probe.py saw in each process, and the losses."""
    cut = ["--per_device_train_batch_size", str(batch // processes), "--output_dir", str(out)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(ROOT / "benchmarks" / "probe.py"), f"{out}.json", str(ROOT / "run_glue_no_trainer.py")]
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run([*command, *flags, *cut], env=environment, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(ended.stderr[-3000:])
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    seen = [json.loads(Path(f"{out}.json.{rank}").read_text()) for rank in range(processes)]
    return seen, [line["loss"] for line in lines if "loss" in line]


def order_of(rows: int, batch: int) -> dict[str, Any]:
    """What the order of one epoch costs a process."""
    from run_glue_no_trainer import GlobalBatchSampler

    lengths = np.random.default_rng(0).integers(5, 128, rows)
    sampler = GlobalBatchSampler(rows, batch, batch, 42, lengths)
    begun = time.perf_counter()
    sampler.global_batches()
    seconds = time.perf_counter() - begun
    tracemalloc.start()
    sampler.global_batches()
    peak = tracemalloc.get_traced_memory()[1] + lengths.nbytes
    tracemalloc.stop()
    return {"rows": f"{rows:,}", "seconds an epoch": seconds, "peak MB": peak / 1e6}


def main() -> None:
    args = parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, parameters = without_dropout(args.model, folder / "model")
        write_rows(folder / "train.csv", args.batch * args.steps, ["some", "plain", "english", "words", "in", "rows"])
        write_rows(folder / "validation.csv", args.batch, ["some", "plain", "english", "words", "in", "rows"])
        flags = ["--model_name_or_path", str(model), "--train_file", str(folder / "train.csv"), "--validation_file"]
        flags += [str(folder / "validation.csv"), "--max_length", "64", "--max_train_steps", str(args.steps)]
        flags += ["--logging_steps", "1"]
        first: list[float] = []
        for processes in args.processes:
            seen, losses = run(processes, flags, folder / str(processes), args.batch)
            first = first or losses
            steps = seen[0]["steps"]
            apart = max(abs(a - b) for a, b in zip(losses, first, strict=True))
            rows.append(
                {
                    "processes": str(processes),
                    "rows of one": str(args.batch // processes),
                    "step s": statistics.median(b - a for a, b in zip(steps[2:], steps[3:], strict=False)),
                    "peak MB of one": max(one["peak_memory"] for one in seen) / 1e6,
                    "sent MB of one": 2 * 4 * parameters * (processes - 1) / processes / 1e6,
                    "last loss": f"{losses[-1]:.7f}",
                    "furthest loss": f"{apart:.1e}",
                }
            )
            print(rows[-1], [f"{loss:.7f}" for loss in losses], file=sys.stderr, flush=True)
    print(table(rows, list(rows[0])))
    print()
    orders = [order_of(count, args.batch) for count in args.rows]
    print(table(orders, list(orders[0])))


if __name__ == "__main__":
    main()
