"""Answers for the rows of a file: this script beside transformers' pipeline and sentence-transformers.

    python benchmarks/predict.py --model MODEL
    python benchmarks/predict.py --model MODEL --sizes 10000 100000 1000000 --peer-rows 5000

The rows are sentences of 3 to 20 English words. Every contender runs in a process of its own, loads the same model,
reads a .csv file, and writes another with each row's text, answer and probability. Its time is counted from when its
libraries are imported to when that file is there. sentence-transformers works as SetFit does: it encodes the texts,
and a head of scikit-learn answers. The peers get --peer-rows rows, since they are slower
and their speed does not depend on the number of rows. Prints one Markdown table.
"""

import argparse
import csv
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
COLUMNS = ["precision", "contender", "batch", "rows", "seconds", "rows/s", "ratio", "peak MB"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a hub id or a folder")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], metavar="ROWS")
    parser.add_argument("--peer-rows", type=int, default=5_000, metavar="ROWS")
    parser.add_argument("--batch", type=int, default=128, help="of this script")
    parser.add_argument("--peer-batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"], choices=["no", "bf16", "fp16"])
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # what a process of its own is to do, as JSON
    return parser.parse_args()


def write_rows(file: Path, rows: int, words: list[str]) -> None:
    pick = random.Random(0)
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text"])
        writer.writerows([" ".join(pick.choices(words, k=pick.randint(3, 20)))] for _ in range(rows))


def read_rows(file: str) -> list[str]:
    with open(file, encoding="utf-8", newline="") as lines:
        return [row["text"] for row in csv.DictReader(lines)]


def write_answers(file: Path, texts: list[str], answers: list[tuple[str, float]]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "prediction", "probability"])
        writer.writerows([text, *answer] for text, answer in zip(texts, answers, strict=True))


def this_script(model: str, file: str, out: Path, batch: int, precision: str) -> float:
    from run_glue_no_trainer import main, parse_args

    begun = time.perf_counter()
    flags = ["--model_name_or_path", model, "--test_file", file, "--output_dir", str(out), "--do_predict"]
    flags += ["--num_train_epochs", "0", "--mixed_precision", precision]
    main(parse_args([*flags, "--per_device_eval_batch_size", str(batch), "--overwrite_output_dir"]))
    return time.perf_counter() - begun


def pipeline(model: str, file: str, out: Path, batch: int, precision: str) -> float:
    import torch
    from transformers import pipeline

    begun = time.perf_counter()
    ask = pipeline("text-classification", model, dtype={"no": torch.float32, "bf16": torch.bfloat16}[precision])
    texts = read_rows(file)
    answers = ask(texts, batch_size=batch, truncation=True, max_length=128)
    write_answers(out / "answers.csv", texts, [(answer["label"], answer["score"]) for answer in answers])
    return time.perf_counter() - begun


def sentence_transformers(model: str, file: str, out: Path, batch: int, precision: str) -> float:
    import torch
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    begun = time.perf_counter()
    dtype = {"no": torch.float32, "bf16": torch.bfloat16}[precision]
    body = SentenceTransformer(model, model_kwargs={"dtype": dtype})
    body.max_seq_length = 128
    texts = read_rows(file)
    vectors = body.encode(texts, batch_size=batch, convert_to_tensor=True).float().numpy()
    head = LogisticRegression().fit(vectors[:2], [0, 1])
    shares = head.predict_proba(vectors)
    write_answers(out / "answers.csv", texts, [(f"LABEL_{row.argmax()}", row.max()) for row in shares])
    return time.perf_counter() - begun


CONTENDERS = {
    "this script": this_script,
    "transformers pipeline": pipeline,
    "sentence-transformers": sentence_transformers,
}


def measure(contender: str, **work: Any) -> dict[str, Any]:
    """Seconds and peak memory of one contender, in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        task = json.dumps({"contender": contender, "out": out, **work})
        command = [sys.executable, __file__, "--model", work["model"], "--contender", task]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{contender} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])


def be_contender(task: dict[str, Any]) -> None:
    seconds = CONTENDERS[task.pop("contender")](**task | {"out": Path(task["out"])})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "peak MB": peak}))


def with_head(model: str, folder: Path) -> list[str]:
    """Save the model with a head of two classes; returns words that its tokenizer knows."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(model, num_labels=2).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(folder)
    return sorted(w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 1)


def main() -> None:
    args = parse_args()
    if args.contender:
        be_contender(json.loads(args.contender))
        return
    from speed import table

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = with_head(args.model, folder / "model")
        for size in {*args.sizes, args.peer_rows}:
            write_rows(folder / f"{size}.csv", size, words)
        peers = [name for name in CONTENDERS if name.startswith("transf")]
        peers += ["sentence-transformers"] * bool(importlib.util.find_spec("sentence_transformers"))
        for precision in args.precisions:
            work = [("this script", args.batch, size) for size in args.sizes]
            work[1:1] = [(peer, batch, args.peer_rows) for peer in peers for batch in args.peer_batches]
            first = None
            for contender, batch, size in work:
                options = {"model": str(folder / "model"), "file": str(folder / f"{size}.csv")}
                row = {"precision": precision, "contender": contender, "batch": batch, "rows": f"{size:,}"}
                row |= measure(contender, **options, batch=batch, precision=precision)
                row["rows/s"] = size / row["seconds"]
                first = first or row["rows/s"]
                rows.append(row | {"ratio": first / row["rows/s"]})
                print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows, COLUMNS))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
