"""Time this script and, where they are given, the two Hugging Face scripts, in turn on the same work.

    python benchmarks/speed.py --model MODEL --glue nyu-mll/glue
    python benchmarks/speed.py --model MODEL --glue GLUE_FOLDER --peer PEER/run_glue_no_trainer.py \
        --trainer PEER/run_glue.py --metric EVALUATE/metrics/glue/glue.py

Prints one Markdown table. FLOP/s count what the real tokens need, padding not: 6 x (weights of the encoder's linear
layers) x tokens + 12 x layers x hidden size x (sum of squared lengths); the peak is that of a matrix product of
2048 x 2048 in the same precision, measured before each round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
COLUMNS = [
    "precision", "script", "examples/s, whole", "ratio", "examples/s, step", "ratio ", "padding", "GFLOP/s",
    "of peak", "peak MB", "start s", "tokenize s", "evaluate s", "save s", "whole s",
]  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", required=True, help="a hub id or a folder; bert-base:FOLDER: random weights, that tokenizer"
    )
    parser.add_argument("--glue", default="nyu-mll/glue", help="the data set: a hub id or a clone of it")
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--peer", type=Path, help="Hugging Face's run_glue_no_trainer.py")
    parser.add_argument("--trainer", type=Path, help="Hugging Face's run_glue.py")
    parser.add_argument("--metric", type=Path, help="evaluate's metrics/glue/glue.py, which the two load")
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"], choices=["no", "bf16", "fp16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=1, help="rounds; medians are shown")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="last: more flags for this script")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def random_bert(folder: Path, tokenizer_of: str) -> str:
    """BERT-base's shape with random weights: what it costs, not what it learns."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def contenders(args: argparse.Namespace, precision: str, gpu: bool) -> dict[str, tuple[Path, list[str]]]:
    """Each script with the flags that give it the same work."""
    same = ["--model_name_or_path", args.model, "--task_name", args.task, "--seed", "42", "--learning_rate", "5e-5"]
    same += ["--per_device_train_batch_size", str(args.batch), "--per_device_eval_batch_size", str(args.batch)]
    bare = ["--max_length", "128", "--max_train_steps", str(args.steps)]
    scripts = {
        "this script": (
            ROOT / "run_glue_no_trainer.py",
            [*same, *bare, "--dataset_name", args.glue, "--mixed_precision", precision, *args.ours],
        )
    }
    if args.peer:
        scripts["run_glue_no_trainer.py"] = args.peer.resolve(), [*same, *bare]
    if args.trainer:
        flags = [*same, "--max_seq_length", "128", "--max_steps", str(args.steps), "--do_train", "--do_eval"]
        flags += ["--report_to", "none", "--save_strategy", "no", *([] if gpu else ["--use_cpu"])]
        flags += [] if precision == "no" else [f"--{precision}"]
        scripts["run_glue.py, as shipped"] = args.trainer.resolve(), flags
        best = ["--pad_to_max_length", "false", "--optim", "adamw_torch_fused"]
        best += ["--train_sampling_strategy", "group_by_length"]
        scripts["run_glue.py, best flags"] = args.trainer.resolve(), [*flags, *best]
        if gpu:
            scripts["run_glue.py, compiled"] = args.trainer.resolve(), [*flags, *best, "--torch_compile"]
    return scripts


def matrix_peak(precision: str, size: int = 2048) -> float:
    """FLOP/s of a product of two square matrices of this size, the best of six tries."""
    import torch

    import run_glue_no_trainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        run_glue_no_trainer.tune_cpu()  # the faster of the libraries that multiply
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        begun = time.perf_counter()
        for _ in range(10):
            a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - begun))
    return best


def linear_weights(model: str) -> tuple[int, int, int]:
    """Weights of the linear layers that every token passes, layers, hidden size."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        modules = AutoModel.from_config(config).named_modules()
    linear = [m for name, m in modules if isinstance(m, torch.nn.Linear) and "pooler" not in name]
    return sum(m.weight.numel() for m in linear), config.num_hidden_layers, config.hidden_size


def stand_ins(folder: Path, glue: str, metric: Path | None) -> None:
    """The peers ask the hub for nyu-mll/glue and for the metric `glue`: in `folder` these names mean local ones."""
    if glue and Path(glue).exists():
        (folder / "nyu-mll").mkdir()
        (folder / "nyu-mll" / "glue").symlink_to(Path(glue).resolve())
    if metric:
        (folder / metric.stem).mkdir()
        (folder / metric.stem / metric.name).write_bytes(metric.read_bytes())


def measure(
    script: Path, flags: list[str], folder: Path, precision: str = "no", caches: Path | None = None
) -> dict[str, Any]:
    """What probe.py saw of one run, in a process of its own with empty caches unless others are given."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "probe.json"
        places = {"HF_DATASETS_CACHE": str(caches or f"{scratch}/datasets"), "HF_MODULES_CACHE": f"{scratch}/modules"}
        environment = os.environ | places | {"ACCELERATE_MIXED_PRECISION": precision}
        command = [sys.executable, *map(str, (ROOT / "benchmarks" / "probe.py", out, script)), *flags]
        command += ["--output_dir", f"{scratch}/out"]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"{' '.join(command)}\n{ended.stderr[-3000:]}")
        saved = [file for file in Path(scratch, "out").glob("step_*/*") if file.is_file()]
        return json.loads(out.read_text()) | {"checkpoint": sum(file.stat().st_size for file in saved)}


def figures(seen: dict[str, Any], shape: tuple[int, int, int], peak: float, warm_up: int = 3) -> dict[str, float]:
    """What the table shows of one run; the first steps warm up and are not in the step's figures."""
    weights, layers, hidden = shape
    steps, forwards = seen["steps"], seen["forwards"]
    late = forwards[-(len(steps) - warm_up) * len(forwards) // len(steps) :] if len(steps) > warm_up else forwards
    seconds = steps[-1] - steps[warm_up - 1] if len(steps) > warm_up else steps[-1]
    flop = sum(6 * weights * f["real"] + 12 * layers * hidden * f["squares"] for f in late)
    return {
        "examples/s, whole": sum(f["rows"] for f in forwards) / seen["whole"],
        "examples/s, step": sum(f["rows"] for f in late) / seconds,
        "padding": 1 - sum(f["real"] for f in forwards) / sum(f["tokens"] for f in forwards),
        "GFLOP/s": flop / seconds / 1e9,
        "of peak": flop / seconds / peak,
        "peak MB": seen["peak_memory"] / 1e6,
        "start s": steps[0] - seen["tokenization"],
        "tokenize s": seen["tokenization"],
        "evaluate s": seen["evaluation"],
        "save s": seen["saving"],
        "whole s": seen["whole"],
    }


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    def cell(value: Any) -> str:
        return value if isinstance(value, str) else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"

    lines = [f"| {' | '.join(column.strip() for column in columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(row.get(c, '')) for c in columns)} |" for row in rows)])


def main() -> None:
    import torch

    args, gpu = parse_args(), torch.cuda.is_available()
    args.glue = str(Path(args.glue).resolve()) if Path(args.glue).exists() else args.glue
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stand_ins(folder, args.glue, args.metric)
        if args.model.startswith("bert-base:"):
            args.model = random_bert(folder / "bert-base", args.model.removeprefix("bert-base:"))
        elif Path(args.model).exists():
            args.model = str(Path(args.model).resolve())
        shape = linear_weights(args.model)
        for precision in args.precisions:
            runs: dict[str, list[dict[str, float]]] = {}
            for _ in range(args.repeat):
                peak = matrix_peak(precision)
                for script, (file, flags) in contenders(args, precision, gpu).items():
                    runs.setdefault(script, []).append(figures(measure(file, flags, folder, precision), shape, peak))
                    print(f"{precision} {script}: {runs[script][-1]}", file=sys.stderr, flush=True)
            middles = {
                script: {key: statistics.median(run[key] for run in several) for key in several[0]}
                for script, several in runs.items()
            }
            ours = middles["this script"]
            for script, middle in middles.items():
                row = {"precision": "fp32" if precision == "no" else precision, "script": script} | middle
                row["ratio"] = ours["examples/s, whole"] / middle["examples/s, whole"]
                row["ratio "] = ours["examples/s, step"] / middle["examples/s, step"]
                rows.append(row)
    print(table(rows, COLUMNS))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
