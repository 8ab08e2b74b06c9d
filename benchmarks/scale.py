"""What the size of the data costs: start, memory, a step, a checkpoint, for files of 10^4, 10^5 and 10^6 rows.

    python benchmarks/scale.py --model MODEL
    python benchmarks/scale.py --model MODEL --peer PEER/run_glue_no_trainer.py \
        --metric EVALUATE/metrics/accuracy/accuracy.py --sizes 10000 1000000

The files are made of English words, 5 to 60 of them in a row, the same for every script; each script is started with
empty caches, this one a second time with what the first start left there. Prints one Markdown table.
"""

import argparse
import csv
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from speed import ROOT, measure, stand_ins, table

COLUMNS = [
    "rows",
    "script",
    "first step s",
    "ratio",
    "tokenize s",
    "step µs/token",
    "peak MB",
    "above model MB",
    "saved MB",
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a hub id or a folder")
    parser.add_argument("--peer", type=Path, help="Hugging Face's run_glue_no_trainer.py")
    parser.add_argument("--metric", type=Path, help="evaluate's metrics/accuracy/accuracy.py, which the peer loads")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], metavar="ROWS")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def write_rows(file: Path, rows: int, words: list[str]) -> None:
    pick = random.Random(rows)
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["sentence1", "label"])
        for _ in range(rows):
            writer.writerow([" ".join(pick.choices(words, k=pick.randint(5, 60))), pick.choice(["no", "yes"])])


def figures(seen: dict[str, Any], weights: int) -> dict[str, float]:
    steps, forwards = seen["steps"], seen["forwards"]
    late = forwards[3 * len(forwards) // len(steps) :]  # a step takes as long as its texts are: count by the token
    return {
        "first step s": steps[0],
        "tokenize s": seen["tokenization"],
        "step µs/token": 1e6 * (steps[-1] - steps[2]) / sum(forward["real"] for forward in late),
        "peak MB": seen["peak_memory"] / 1e6,
        "above model MB": (seen["peak_memory"] - 4 * weights) / 1e6,  # the model: weights, gradients, AdamW's two
        "saved MB": seen["checkpoint"] / 1e6,
    }


def main() -> None:
    args = parse_args()
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(args.model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    vocabulary = AutoTokenizer.from_pretrained(args.model).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1)
    scripts = {"this script": ROOT / "run_glue_no_trainer.py", "this script, again": ROOT / "run_glue_no_trainer.py"}
    if args.peer:
        scripts["run_glue_no_trainer.py"] = args.peer.resolve()
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            stand_ins(folder, "", args.metric)
            write_rows(folder / "train.csv", size, words)
            write_rows(folder / "validation.csv", 16, words)
            flags = ["--model_name_or_path", args.model, "--max_length", "64", "--max_train_steps", str(args.steps)]
            flags += ["--train_file", str(folder / "train.csv"), "--validation_file", str(folder / "validation.csv")]
            flags += ["--per_device_train_batch_size", str(args.batch), "--checkpointing_steps", str(args.steps)]
            of_size: list[dict[str, Any]] = []
            for script, file in scripts.items():
                caches = folder / ("ours" if script.startswith("this") else "peer")
                row = {"rows": f"{size:,}", "script": script} | figures(
                    measure(file, flags, folder, caches=caches), weights
                )
                of_size.append(row | {"ratio": row["first step s"] / (of_size or [row])[0]["first step s"]})
                print(of_size[-1], file=sys.stderr, flush=True)
            rows += of_size
    print(table(rows, COLUMNS))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
