"""Fine-tune a model on GLUE tasks with several seeds, in one setting or more, and print the scores as a table.

    python benchmarks/glue_table.py --model MODEL --output_dir runs --tasks mrpc rte --seeds 42 1 2 \
        --setting fp32= --setting "bf16=--mixed_precision bf16" --setting "random=--no_group_by_length"

A setting is a name and the flags that make it. With --peer, one more is `peer`, Hugging Face's script of this name. A
run that has ended is not run again, so the command can be stopped and repeated; --limit_minutes starts no new run
after so long. Writes table.md, table.json and table.png to --output_dir. Differences are those of the means, each with
its 95 % confidence interval by Welch's t-test.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from speed import ROOT, stand_ins

METRICS = {"cola": "matthews_correlation", "stsb": "pearson", "mrpc": "f1", "qqp": "f1"}  # the others: accuracy
TASKS = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a hub id or a folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="runs and tables; to go on, give the same one")
    parser.add_argument("--glue", default="nyu-mll/glue", help="the data set: a hub id or a clone of it")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2], metavar="SEED")
    parser.add_argument("--setting", action="append", metavar="NAME=FLAGS", help="(default: fp32=, bf16)")
    parser.add_argument("--peer", type=Path, help="Hugging Face's run_glue_no_trainer.py")
    parser.add_argument("--metric", type=Path, help="evaluate's metrics/glue/glue.py, which the peer loads")
    parser.add_argument(
        "--precision", default="no", choices=["no", "bf16", "fp16"], help="where a setting says nothing"
    )
    parser.add_argument("--flags", default="", help="for all runs, such as '--num_train_epochs 5'")
    parser.add_argument("--limit_minutes", type=float, default=float("inf"))
    return parser.parse_args()


def fine_tune(script: Path, flags: list[str], out: Path, folder: Path, precision: str) -> None:
    """One run; the whole process's seconds, on the clock and of CPU time, are left beside its results."""
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": precision}
    command = [sys.executable, str(script), *flags, "--output_dir", str(out.resolve())]
    begun, before = time.perf_counter(), os.times()
    with open(out / "output.txt", "w") as said:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=said, stderr=said).returncode
    if code:
        sys.exit(f"{shlex.join(command)}\nended with exit code {code}, see {out / 'output.txt'}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": cpu}
    (out / "seconds.json").write_text(json.dumps(seconds))


def collect(args: argparse.Namespace, settings: list[str]) -> list[dict[str, Any]]:
    """A row for each task and setting that has runs: its scores by seed and its mean times."""
    rows = []
    for task in args.tasks:
        metric = METRICS.get(task, "accuracy")
        for setting in settings:
            ended = [args.output_dir / setting / task / str(seed) for seed in args.seeds]
            ended = [run for run in ended if (run / "seconds.json").exists()]
            scores = [json.loads((run / "all_results.json").read_text())[f"eval_{metric}"] for run in ended]
            times = [json.loads((run / "seconds.json").read_text()) for run in ended]
            if scores:
                row = {"task": task, "metric": metric, "setting": setting, "scores": scores}
                rows.append(row | {name: float(np.mean([time[name] for time in times])) for name in times[0]})
    return rows


def difference(ours: list[float], others: list[float]) -> str:
    """Of the means of two settings, with the 95 % confidence interval where each has two seeds."""
    apart = np.mean(ours) - np.mean(others)
    if min(len(ours), len(others)) < 2 or np.ptp(ours) == np.ptp(others) == 0:
        return f"{apart:+.4f}"
    low, high = stats.ttest_ind(ours, others, equal_var=False).confidence_interval()
    return f"{apart:+.4f} ({low:+.4f} to {high:+.4f})"


def markdown(rows: list[dict[str, Any]], settings: list[str]) -> str:
    heads = [f"{setting} | seconds (of CPU)" for setting in settings] + [
        f"{settings[0]} − {name}" for name in settings[1:]
    ]
    lines = [f"| task | metric | {' | '.join(heads)} |", "|---" * (1 + 3 * len(settings)) + "|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        by = {row["setting"]: row for row in rows if row["task"] == task}
        cells = [task, next(iter(by.values()))["metric"]]
        for setting in settings:
            scores = by[setting]["scores"] if setting in by else []
            spread = f" ± {np.std(scores, ddof=1):.4f}" if len(scores) > 1 else ""
            result = f"{np.mean(scores):.4f}{spread} ({len(scores)})" if scores else ""
            cells += [result, f"{by[setting]['seconds']:.0f} ({by[setting]['cpu_seconds']:.0f})" if scores else ""]
        for setting in settings[1:]:
            both = settings[0] in by and setting in by
            cells.append(difference(by[settings[0]]["scores"], by[setting]["scores"]) if both else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], settings: list[str], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(figsize=(1.6 * len(tasks) + 2, 3.5), layout="constrained")
    for number, setting in enumerate(settings):
        for row in (row for row in rows if row["setting"] == setting):
            place = tasks.index(row["task"]) + (number - (len(settings) - 1) / 2) * 0.2
            axes.plot([place] * len(row["scores"]), row["scores"], "o", color=f"C{number}", alpha=0.5)
            axes.plot([place - 0.07, place + 0.07], [np.mean(row["scores"])] * 2, color=f"C{number}")
        axes.plot([], [], "o", color=f"C{number}", label=setting)
    axes.set_xticks(range(len(tasks)), [f"{task}\n{METRICS.get(task, 'accuracy').split('_')[0]}" for task in tasks])
    axes.set_ylabel("score, by seed and mean")
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    args, begun = parse_args(), time.monotonic()
    named = dict(setting.split("=", 1) for setting in args.setting or ["fp32=", "bf16=--mixed_precision bf16"])
    settings = [*named, *(["peer"] if args.peer else [])]
    model = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    folder = args.output_dir / "names"
    if not folder.exists():
        folder.mkdir(parents=True)
        stand_ins(folder, args.glue, args.metric)
    glue = str(Path(args.glue).resolve()) if Path(args.glue).exists() else args.glue
    same = ["--model_name_or_path", model, "--max_length", "128", "--per_device_train_batch_size", "32"]
    same += ["--learning_rate", "5e-5", "--num_train_epochs", "3"]
    for seed in args.seeds:  # seed by seed, so that a run that is stopped has something of every task
        for task in args.tasks:
            for setting in settings:
                out = args.output_dir / setting / task / str(seed)
                if (out / "seconds.json").exists() or time.monotonic() - begun > 60 * args.limit_minutes:
                    continue
                flags = [*same, "--task_name", task, "--seed", str(seed), *shlex.split(args.flags)]
                if setting == "peer":
                    script = args.peer.resolve()
                else:
                    script = ROOT / "run_glue_no_trainer.py"
                    flags += ["--dataset_name", glue, "--overwrite_output_dir", *shlex.split(named[setting])]
                print(f"{setting} {task} seed {seed}", file=sys.stderr, flush=True)
                fine_tune(script, flags, out, folder, args.precision)
    rows = collect(args, settings)
    text = markdown(rows, settings)
    print(text)
    (args.output_dir / "table.md").write_text(text + "\n")
    (args.output_dir / "table.json").write_text(json.dumps(rows, indent=2))
    draw(rows, settings, args.output_dir / "table.png")


if __name__ == "__main__":
    main()
