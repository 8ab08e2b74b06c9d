"""One GPU: whether everything works on it, what the loop costs beside the model, and how fast it trains.

    python benchmarks/gpu.py --minutes 7 --model MODEL --glue GLUE --peer PEER --metric PEER/glue/glue.py

Prints one Markdown table a part, each row as soon as it is there. The clock ends it: a case that fails, takes too
long or has no time left is a row that says so. Everything is made here but for --model, a small sentence model (the
quick start and MRPC; without it a tiny one with random weights), --glue, a clone of nyu-mll/glue (MRPC), and --peer,
the folder of the Hugging Face scripts run_glue_no_trainer.py and run_glue.py, which load --metric. So it also runs
on a machine without a network, from a folder brought there, with the wheels of packages that it lacks:

    python -m pip install --no-index --no-deps --target /tmp/site BUNDLE/whl/*.whl && export PYTHONPATH=/tmp/site
    python benchmarks/gpu.py --model BUNDLE/minilm --glue BUNDLE/glue \
        --peer BUNDLE/peer --metric BUNDLE/peer/glue/glue.py

- works: see benchmarks/works.py; several cases at a time (--jobs), so that their seconds say little.
- host: float32, a model of one layer of width 8, which takes next to no time on the device: the rest is the loop's.
- speed: BERT-base's shape with random weights (--shape), bf16, 32 rows a step, as long as MNLI's: 39 tokens on
  average, at most 128. The first half of the steps warms up. `of peak` is the share that the real tokens need of a
  product of large matrices in bf16; `MNLI, 3 epochs` is 36,816 steps at this pace.

Without a CUDA device the same code runs on the CPU; what needs one is a row that says `no CUDA device`.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from processes import without_dropout
from speed import ROOT, contenders, figures, linear_weights, matrix_peak, stand_ins, table
from works import COMPILED, LAYERS, PATH_TO_ROOT, Failed, Late, Untried, Work, cases, edited, run

sys.path.append(str(ROOT))
BATCH, MNLI_STEPS = 32, 36_816  # of three epochs
# by --shape: words, layers, width, heads, width of the inner layer
SHAPES = {"bert-base": (30_522, 12, 768, 12, 3072), "tiny": (1_000, 2, 32, 2, 64), "nothing": (1_000, 1, 8, 2, 16)}
PARTS = {"works": 0.4, "host": 0.12, "speed": 0.48}  # each one's share of the time; what is left over goes to the next
COLUMNS = {
    "works": ["case", "works", "what was seen", "seconds"],
    "host": ["script", "ms a step", "beside the model", "fetching and padding", "note"],
    "speed": ["script", "examples/s", "ratio", "ms a step", "first step s", "whole s", "padding", "peak MB", "TFLOP/s",
              "of peak", "MNLI, 3 epochs", "note"],
}  # fmt: skip
EDITED = "this script, edit cuda_graphs"
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=7, help="when to end, whatever is left")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--model", help="a small sentence model's folder")
    parser.add_argument("--glue", help="a clone of nyu-mll/glue")
    parser.add_argument("--peer", type=Path, help="the folder of Hugging Face's two scripts")
    parser.add_argument("--metric", type=Path, help="evaluate's metrics/glue/glue.py, which the two load")
    parser.add_argument("--shape", choices=["bert-base", "tiny"], default="bert-base", help="of the part speed")
    parser.add_argument("--steps", type=int, default=300, help="of each run in host and speed")
    jobs = max(1, min(6, (os.cpu_count() or 1) // 2))
    parser.add_argument("--jobs", type=int, default=jobs, help="cases of works at a time")
    parser.add_argument("--cases", default="", help="of works, only those whose name has this pattern")
    parser.add_argument("--few", action="store_true", help="fewer cases: does the benchmark itself run?")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)  # what a process of its own is to do
    return parser.parse_args()


# --- What is measured: made rows, made models.


def make_model(folder: Path, shape: str) -> str:
    """A BERT of this shape with random weights, whose tokenizer knows letters and the words w0, w1, w2 ..."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    size, layers, width, heads, inner = SHAPES[shape]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase, *(f"##{a}" for a in ascii_lowercase)]
    words += [f"w{index}" for index in range(size - len(words))]
    vocabulary = {word: index for index, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
    )
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    return str(folder)


def draw_lengths(draw: np.random.Generator, rows: int) -> np.ndarray:
    """As MNLI's: 39 tokens on average, half of them below 35, one in twenty above 75, none above 128."""
    return np.clip(draw.lognormal(3.553, 0.47, rows), 8, 128).astype(int)


def make_mnli(folder: Path, rows: int, words: int) -> str:
    """Rows of random words in the layout of nyu-mll/glue, as the task mnli; as many tokens as its rows have."""
    from datasets import ClassLabel, Dataset, Features, Value

    draw = np.random.default_rng(0)
    names = ["entailment", "neutral", "contradiction"]
    kinds = {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=names)}
    features = Features(kinds | {"idx": Value("int32")})
    lines = ["---", "configs:", "- config_name: mnli", "  data_files:"]
    (folder / "mnli").mkdir(parents=True)
    others = [f"{split}_{kind}" for split in ("validation", "test") for kind in ("matched", "mismatched")]
    for split, number in {"train": rows, **dict.fromkeys(others, BATCH)}.items():
        lengths = draw_lengths(draw, number) - 3  # [CLS], [SEP] and [SEP]
        texts = [[f"w{word}" for word in draw.integers(0, words, length)] for length in lengths]
        cuts = [2 * len(text) // 3 for text in texts]
        data = {
            "premise": [" ".join(text[:cut]) for text, cut in zip(texts, cuts, strict=True)],
            "hypothesis": [" ".join(text[cut:]) for text, cut in zip(texts, cuts, strict=True)],
            "label": draw.integers(0, 3, number).tolist(),
            "idx": list(range(number)),
        }
        Dataset.from_dict(data, features).to_parquet(folder / "mnli" / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: mnli/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


def inside(what: str, *how: str) -> float:
    """In a process of its own: FLOP/s at the peak, or the seconds of a step of a model that no loop is around."""
    import torch

    import run_glue_no_trainer as script

    gpu = torch.cuda.is_available()
    if what == "peak":
        return matrix_peak("bf16", 8192 if gpu else 2048)
    from transformers import AutoModelForSequenceClassification as Auto

    if not gpu:
        script.tune_cpu()
    folder, device, steps = how[0], "cuda" if gpu else "cpu", int(how[1])
    model = Auto.from_pretrained(folder, num_labels=3, attn_implementation=None if gpu else "eager").to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    draw = np.random.default_rng(0)
    lengths = np.sort(draw_lengths(draw, 50 * BATCH))[BATCH - 1 :: BATCH]  # of the longest rows of 50 batches
    batches = []
    for length in -(-draw.permutation(lengths) // 8) * 8:
        batch = {"input_ids": torch.randint(5, 900, (BATCH, length)), "labels": torch.randint(3, (BATCH,))}
        batch |= {name: torch.ones(BATCH, length, dtype=torch.long) for name in ("attention_mask", "token_type_ids")}
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    begun = 0.0
    for number in range(50 + steps):
        if number == 50:
            begun = time.perf_counter()
        model(**batches[number % 50]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps


def ask_inside(until: float, *what: object) -> float:
    """What `inside` returns, FLOP/s or seconds a step, from a process of its own."""
    return json.loads(run([sys.executable, __file__, "--inside", *what], until).splitlines()[-1])


def probed(command: list[Any], flags: list[Any], cwd: Path, until: float, **environment: str) -> Row:
    """What probe.py saw of a script; `command` ends with the script."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "probe.json"
        places = {"HF_DATASETS_CACHE": f"{scratch}/datasets", "HF_MODULES_CACHE": f"{scratch}/modules"}
        *launcher, script = command
        probe = [*launcher, ROOT / "benchmarks" / "probe.py", out, script, *flags, "--output_dir", f"{scratch}/out"]
        run(probe, until, cwd=cwd, **places, **environment)
        return json.loads(out.read_text())


# --- The parts. Each yields its rows; a case is a function that is given until when it has time.


def attempt(case: Callable[[float], Any], until: float, limit: float) -> tuple[Any, str, str]:
    """What a case returns; whether it worked: yes, no or untried; why not."""
    left = min(limit, until - time.monotonic())
    try:
        if left < 3:
            raise Untried("no time was left")
        return case(time.monotonic() + left), "yes", ""
    except (Late, Untried) as error:  # it is late by its own limit, or only by the clock
        return None, "no" if isinstance(error, Late) and left == limit else "untried", str(error)
    except Exception as error:  # none of them may end the others
        return None, "no", str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"


def works(args: argparse.Namespace, folder: Path, until: float, gpu: bool) -> Iterator[Row]:
    model = args.model or make_model(folder / "model", "tiny")
    plain, _ = without_dropout(model, folder / "plain")
    (folder / "works").mkdir()
    base = Work(model, str(plain), args.glue, folder / "works", gpu)

    def see(name: str, case: Callable[[Work], str], needs_gpu: bool) -> Row:
        def in_time(end: float) -> str:
            if needs_gpu and not gpu:
                raise Untried("no CUDA device")
            return case(replace(base, until=end))

        begun = time.monotonic()
        seen, answer, why = attempt(in_time, until, 120)
        return {"case": name, "works": answer, "what was seen": seen or why, "seconds": time.monotonic() - begun}

    chosen = {name: case for name, case in cases(args.few).items() if re.search(args.cases, name)}
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(see, name, *case) for name, case in chosen.items()]):
            yield done.result()


def peers(args: argparse.Namespace, model: str, glue: str, precision: str, gpu: bool) -> dict[str, tuple[Path, list]]:
    """All scripts with their flags for the task mnli, this one first."""
    of = {"model": model, "glue": glue, "task": "mnli", "batch": BATCH, "steps": args.steps, "ours": []}
    scripts = {"peer": "run_glue_no_trainer.py", "trainer": "run_glue.py"}
    of |= {name: args.peer and args.peer / file for name, file in scripts.items()}
    return contenders(argparse.Namespace(**of), precision, gpu)


def host(args: argparse.Namespace, folder: Path, until: float, gpu: bool) -> Iterator[Row]:
    model = make_model(folder / "nothing", "nothing")
    glue = make_mnli(folder / "host_glue", args.steps * BATCH, 900)
    (folder / "host").mkdir()
    stand_ins(folder / "host", glue, args.metric)
    alone, _, why = attempt(lambda end: ask_inside(end, "alone", model, args.steps), until, 60)
    yield {"script": "the model alone", "ms a step": 1000 * alone if alone else "", "note": why}
    for name, (script, flags) in peers(args, model, glue, "no", gpu).items():
        if name in ("run_glue.py, as shipped", "run_glue.py, compiled"):
            continue
        seen, _, why = attempt(lambda end: probed([sys.executable, script], flags, folder / "host", end), until, 60)
        row: Row = {"script": name, "note": why}
        if seen:
            first, last = seen["steps"][len(seen["steps"]) // 2 - 1], seen["steps"][-1]
            steps = len(seen["steps"]) - len(seen["steps"]) // 2
            fetched = sum(seconds for end, seconds in seen["fetches"] if first < end < last)
            row |= {"ms a step": 1000 * (last - first) / steps, "fetching and padding": 1000 * fetched / steps}
            row |= {"beside the model": row["ms a step"] - 1000 * alone if alone else ""}
        yield row
    if not args.peer:
        yield {"script": "Hugging Face's", "note": "left out: no --peer"}


def paced(command: list[Any], flags: list[Any], cwd: Path, until: float, **environment: str) -> Row:
    """Examples a second, peak MB and seconds of a run, from its log lines: probe.py does not see replayed steps.

    The pace is the median of the last six of twelve lines: one may hold the time of a recording or an evaluation.
    """
    steps = int(flags[flags.index("--max_train_steps") + 1])
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        its = [*flags, "--logging_steps", max(steps // 12, 1), "--output_dir", f"{scratch}/out"]
        said = run([*command, *its], until, cwd=cwd, HF_DATASETS_CACHE=f"{scratch}/datasets", **environment)
    lines = re.findall(r"(\d+) rows a second, .+ left, ([\d,]+) MB", said)
    pace, memory = statistics.median(float(pace) for pace, _ in lines[-6:]), lines[-1][1]
    return {"examples/s": pace, "peak MB": float(memory.replace(",", "")), "whole s": time.monotonic() - begun}


def fast_ways(
    scripts: dict[str, tuple[Path, list]], graphs_edit: Path
) -> dict[str, tuple[list, list, dict[str, str]]]:
    """Command, flags and environment of each contender of the part speed, the most worth first."""
    plain = {name: ([sys.executable, script], flags, {}) for name, (script, flags) in scripts.items()}
    script, flags = scripts["this script"]
    ways = {
        "this script": plain["this script"],
        "run_glue_no_trainer.py": plain.get("run_glue_no_trainer.py"),
        EDITED: ([sys.executable, graphs_edit], flags, PATH_TO_ROOT),
        "run_glue.py, best flags": plain.get("run_glue.py, best flags"),
        f"{EDITED}, single_gpu_cuda_graphs.yaml": ([*LAYERS, graphs_edit], flags, PATH_TO_ROOT),
        "this script, single_gpu_compiled.yaml": ([*COMPILED, script], flags, {}),
        "run_glue.py, compiled": plain.get("run_glue.py, compiled"),
        "this script, single_gpu_cuda_graphs.yaml": ([*LAYERS, script], flags, {}),
        "run_glue.py, as shipped": plain.get("run_glue.py, as shipped"),
    }
    return {name: way for name, way in ways.items() if way}


def speed(args: argparse.Namespace, folder: Path, until: float, gpu: bool) -> Iterator[Row]:
    model = make_model(folder / args.shape, args.shape)
    glue = make_mnli(folder / "speed_glue", args.steps * BATCH, SHAPES[args.shape][0] - 100)
    (folder / "speed").mkdir()
    stand_ins(folder / "speed", glue, args.metric)
    peak, _, why = attempt(lambda end: ask_inside(end, "peak"), until, 60)
    yield {"script": "a product of matrices", "TFLOP/s": peak / 1e12 if peak else "", "note": why}
    graphs_edit = edited(ROOT / "examples" / "edits" / "cuda_graphs.patch", folder / "edited")
    shape, ours, work = linear_weights(model), 0.0, 0.0
    for name, (command, flags, environment) in fast_ways(peers(args, model, glue, "bf16", gpu), graphs_edit).items():
        if name == f"{EDITED}, single_gpu_cuda_graphs.yaml":
            yield from whole_runs(args, folder, until)  # before what takes minutes to compile
        if args.few and ("compiled" in name or ".yaml" in name):
            continue

        def probe(end: float) -> Row:
            its = environment | {"ACCELERATE_MIXED_PRECISION": "bf16"}
            measure = paced if name.startswith(EDITED) else probed
            return measure(command, flags, folder / "speed", end, **its)

        seen, _, why = attempt(probe, until, 150)
        row: Row = {"script": name, "note": why}
        if seen and name.startswith(EDITED):
            row |= seen | {
                "ratio": seen["examples/s"] / ours if ours else "",
                "TFLOP/s": work * seen["examples/s"] or "",
            }
            row |= {"of peak": 1e12 * row["TFLOP/s"] / peak if peak and work else ""}
        elif seen:
            found = figures(seen, shape, peak or float("inf"), warm_up=max(len(seen["steps"]) // 2, 1))
            pace = found["examples/s, step"]
            if name == "this script":  # all train on the same rows
                ours, work = pace, found["GFLOP/s"] / 1000 / pace
            row |= {"examples/s": pace, "ratio": pace / ours if ours else ""}
            row |= {"first step s": seen["steps"][0], "TFLOP/s": found["GFLOP/s"] / 1000}
            row |= {column: found[column] for column in ("whole s", "padding", "peak MB")}
            row |= {"of peak": found["of peak"] if peak else ""}
        if seen:
            row["ms a step"] = 1000 * BATCH / row["examples/s"]
            row["MNLI, 3 epochs"] = str(timedelta(seconds=round(MNLI_STEPS * row["ms a step"] / 1000)))
        yield row
    if not args.peer:
        yield {"script": "Hugging Face's", "note": "left out: no --peer"}


def whole_runs(args: argparse.Namespace, folder: Path, until: float) -> Iterator[Row]:
    """MRPC, from the start of the process to the saved model; its rows are real ones, and so is the model."""
    if not args.glue or not args.model:
        yield {"script": "MRPC", "note": "left out: it takes --model and --glue"}
        return
    (folder / "mrpc").mkdir()
    stand_ins(folder / "mrpc", args.glue, args.metric)
    flags = ["--model_name_or_path", args.model, "--task_name", "mrpc", "--per_device_train_batch_size", BATCH]
    flags += ["--per_device_eval_batch_size", BATCH, "--num_train_epochs", 3, "--max_length", 128]
    scripts = {"MRPC, this script": (ROOT / "run_glue_no_trainer.py", [*flags, "--dataset_name", args.glue])}
    if args.peer:
        scripts["MRPC, run_glue_no_trainer.py"] = args.peer / "run_glue_no_trainer.py", flags
    for name, (script, its) in scripts.items():

        def probe(end: float) -> Row:
            return probed([sys.executable, script], its, folder / "mrpc", end, ACCELERATE_MIXED_PRECISION="bf16")

        seen, _, why = attempt(probe, until, 120)
        row: Row = {"script": name, "note": why}
        if seen:
            steps, row["note"] = seen["steps"], f"the model saved after {seen['saving ended']:.1f} s"
            row |= {"whole s": seen["whole"], "first step s": steps[0], "peak MB": seen["peak_memory"] / 1e6}
            row |= {"ms a step": 1000 * (steps[-1] - steps[2]) / (len(steps) - 3)}
        yield row


# --- What is printed.


def show(part: str, rows: Iterable[Row]) -> None:
    """The part's table, row by row."""
    print(f"\n## {part}\n", flush=True)
    for number, row in enumerate(rows):
        row = {name: cell.replace("|", "/").replace("\n", " ") if isinstance(cell, str) else cell
               for name, cell in row.items()}  # fmt: skip
        lines = table([row], COLUMNS[part]).splitlines()
        print("\n".join(lines if number == 0 else lines[2:]), flush=True)


def versions() -> str:
    """The commit, the card, and what the figures depend on."""
    import accelerate
    import torch
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no CUDA device, {platform.machine()} CPU"
    commit = "unknown"
    if shutil.which("git"):
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        commit = asked.stdout.strip() or commit
    packages = {module.__name__: module.__version__ for module in (torch, transformers, accelerate)}
    packages |= {"Python": platform.python_version(), "commit": commit}
    return ", ".join([card, *(f"{name} {version}" for name, version in packages.items()), time.strftime("%Y-%m-%d")])


def main() -> None:
    begun, args = time.monotonic(), parse_args()
    if args.inside:
        print(json.dumps(inside(*args.inside)))
        return
    import torch

    from no_trainer.launch import quieten_libraries

    quieten_libraries(bars=False)
    for name in ("model", "glue", "peer", "metric"):  # they are used from other folders
        if (value := getattr(args, name)) and Path(value).exists():
            setattr(args, name, type(value)(Path(value).resolve()))
    gpu, end, shares = torch.cuda.is_available(), begun + 60 * args.minutes, sum(PARTS[part] for part in args.parts)
    print(f"{versions()}, {' '.join(sys.argv[1:])}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for part in [part for part in PARTS if part in args.parts]:
            until = time.monotonic() + (end - time.monotonic()) * PARTS[part] / shares
            shares -= PARTS[part]
            try:
                show(part, {"works": works, "host": host, "speed": speed}[part](args, Path(scratch), until, gpu))
            except Exception as error:  # the next part may still go well
                print(f"\n{part} ended early: {type(error).__name__}: {error}", flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
