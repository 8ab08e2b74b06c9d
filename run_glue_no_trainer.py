#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402  (the arguments are read before the heavy imports, see below)
"""Fine-tune a sequence-classification model on a GLUE task or on your own files: the loop in plain sight.

    python run_glue_no_trainer.py --model_name_or_path bert-base-cased --task_name mrpc --output_dir out
    accelerate launch run_glue_no_trainer.py --model_name_or_path bert-base-cased --train_file train.csv ...

The file reads in the order in which it runs: tasks, arguments, data, model, loop, evaluation, results.
The training loop is in `main`. Copy this file and change what you like: it imports nothing from its project.
"""

import argparse
import csv
import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

# --- Tasks

GLUE = {  # task: its text columns in nyu-mll/glue
    "cola": ["sentence"],
    "mnli": ["premise", "hypothesis"],
    "mrpc": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "rte": ["sentence1", "sentence2"],
    "sst2": ["sentence"],
    "stsb": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
METRICS = {  # what each task is scored with; the tasks not named here by accuracy
    "cola": ["matthews_correlation"],
    "mrpc": ["accuracy", "f1"],
    "qqp": ["accuracy", "f1"],
    "stsb": ["pearson", "spearmanr"],
    "two classes": ["accuracy", "macro_f1", "f1"],
    "classes": ["accuracy", "macro_f1"],
    "regression": ["mse", "pearson", "spearmanr"],
}

# --- Arguments


def stop(message: str, code: int = 2) -> NoReturn:
    """End the run with one line about something that the user can mend. Of several processes, the first speaks."""
    if int(os.environ.get("RANK", "0")) != 0:
        time.sleep(2)  # the launcher ends all processes as soon as one has left: let the first finish its sentence
        sys.exit(code)
    write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print  # above a progress bar
    write(f"{Path(__file__).name}: error: {message}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(code)


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"takes true or false (or nothing, which means true), not {text!r}")
    return text.lower() == "true"


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: an int or float from low to high."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"takes a {'whole ' * (kind is int)}number, not {text!r}") from None
        if not low <= value <= high or not math.isfinite(value):
            most = f" and at most {high:g}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be at least {low:g}{most}, not {text}")
        return value

    return parse


class Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if unknown := re.search(r"unrecognized arguments: --([^\s=]+)", message):
            message += suggestion(unknown[1], [option.lstrip("-") for option in self._option_string_actions])
        stop(f"{message} (--help lists every flag)")


def suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build_parser() -> argparse.ArgumentParser:
    positive, count = number(int, 1), number(int, 0)
    parser = Parser(
        description=__doc__.split("\n")[0],
        usage="%(prog)s --model_name_or_path MODEL (--task_name TASK | --train_file FILE) [--output_dir DIR] [...]",
        formatter_class=lambda prog: Help(prog, max_help_position=34, width=100),
        allow_abbrev=False,
    )
    parser._optionals.title = "general"
    switch: dict[str, Any] = {"nargs": "?", "const": True, "default": False, "type": true_or_false, "metavar": "true"}
    parser.add_argument("--config", metavar="FILE.yaml", help="flags from a YAML file; the command line wins over it")

    add = parser.add_argument_group("data").add_argument
    add("--task_name", choices=GLUE, help="a GLUE task")
    add("--dataset_name", metavar="NAME", help="where GLUE is: a hub id or a local folder (default: nyu-mll/glue)")
    add("--train_file", metavar="FILE", help="your own data, .csv or .json: a column `label` and one or two of text")
    add("--validation_file", metavar="FILE", help="the same columns, to evaluate on")
    add("--max_train_samples", type=positive, metavar="N", help="train on the first N rows only")
    add("--max_eval_samples", type=positive, metavar="N", help="evaluate on the first N rows only")
    add("--max_length", type=number(int, 4), default=128, metavar="N", help="cut longer texts at N tokens")
    add("--pad_to_max_length", **switch, help="pad every text to --max_length instead of to its batch's longest")
    add("--no_group_by_length", **switch, help="draw batches at random instead of from texts of like length")
    add("--preprocessing_num_workers", type=positive, metavar="N", help="processes that tokenize")
    add("--dataloader_num_workers", type=count, default=0, metavar="N", help="processes that load batches")

    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", metavar="MODEL", help="a hub id or a local folder (required)")
    add("--model_revision", default="main", metavar="REV", help="branch, tag or commit of a hub model")
    add("--use_slow_tokenizer", **switch, help="the tokenizer written in Python, where there is one still")
    add("--ignore_mismatched_sizes", **switch, help="start a new head where the model's has other classes")
    add(
        "--attn_implementation", metavar="NAME", help="eager, sdpa, flash_attention_2 ... (default: what is fast here)"
    )
    add("--trust_remote_code", **switch, help="run code that comes with the model; read it first")

    add = parser.add_argument_group("training").add_argument
    add("--per_device_train_batch_size", type=positive, default=8, metavar="N", help="rows of one device at a time")
    add("--per_device_eval_batch_size", type=positive, default=8, metavar="N", help="the same in evaluation")
    add("--gradient_accumulation_steps", type=positive, default=1, metavar="N", help="batches that make one step")
    add("--num_train_epochs", type=count, default=3, metavar="N", help="passes over the data; 0 evaluates only")
    add("--max_train_steps", type=positive, metavar="N", help="stop after N optimizer steps; wins over the epochs")
    add("--learning_rate", type=number(float, 0), default=5e-5, metavar="LR", help="peak of the schedule, for AdamW")
    add(
        "--weight_decay",
        type=number(float, 0),
        default=0.0,
        metavar="X",
        help="not for biases and normalisation layers",
    )
    add(
        "--max_grad_norm",
        type=number(float, 0),
        default=1.0,
        metavar="X",
        help="clip gradients to this norm; 0: never",
    )
    schedules = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
    add("--lr_scheduler_type", choices=schedules, default="linear", help="what becomes of the learning rate")
    add("--num_warmup_steps", type=count, default=0, metavar="N", help="steps over which it rises from 0")
    add("--warmup_ratio", type=number(float, 0, 1), default=0.0, metavar="X", help="the same as a share of all steps")
    add("--mixed_precision", choices=["no", "fp16", "bf16", "fp8"], help="(default: what `accelerate config` says)")
    add("--seed", type=count, default=42, metavar="N", help="of the new head, the order of the data and dropout")

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", metavar="DIR", help="where model, results and checkpoints go; nothing is saved without it")
    add("--overwrite_output_dir", **switch, help="start anew in a folder that holds an earlier run")
    add("--checkpointing_steps", metavar="N|epoch", help="save a checkpoint every N steps or after every epoch")
    add("--save_total_limit", type=positive, metavar="N", help="keep the newest N checkpoints")
    add("--resume_from_checkpoint", metavar="DIR|latest", help="go on from a checkpoint of the same run")
    add("--logging_steps", type=positive, default=10, metavar="N", help="steps between two lines of log.jsonl")
    add("--with_tracking", **switch, help="log to experiment trackers as well")
    add("--report_to", default="all", metavar="NAME", help="the tracker: tensorboard, wandb ...; all: those installed")
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line over the --config file; whatever can be checked without the data is checked here.

    Raises:
        SystemExit: 2, after one line that names the flag and what would be right; 0 after --help.
    """
    parser = build_parser()
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config = first.parse_known_args(argv)[0].config
    args = parser.parse_args([*(read_config(config, parser) if config else []), *argv])

    if not args.model_name_or_path:
        stop("--model_name_or_path is needed: a hub id such as bert-base-cased or a local folder with a model")
    if re.match(r"[./~]", args.model_name_or_path) and not Path(args.model_name_or_path).expanduser().is_dir():
        stop(f"--model_name_or_path {args.model_name_or_path}: there is no such folder")
    if args.task_name and (args.train_file or args.validation_file):
        stop("--task_name and --train_file/--validation_file exclude each other: GLUE brings its own data")
    if not args.task_name and not args.train_file:
        stop(f"what to train on? Give --task_name ({', '.join(GLUE)}) or --train_file")
    if args.dataset_name and not args.task_name:
        stop(f"--dataset_name {args.dataset_name} needs a --task_name: {', '.join(GLUE)}")
    if args.train_file and not args.validation_file:
        stop("--train_file needs a --validation_file to evaluate on")
    for flag in ("train_file", "validation_file"):
        if file := getattr(args, flag):
            if Path(file).suffix not in (".csv", ".json"):
                stop(f"--{flag} {file}: only .csv and .json files can be read")
            if not Path(file).is_file():
                stop(f"--{flag} {file}: there is no such file")
    if args.num_warmup_steps and args.warmup_ratio:
        stop("--num_warmup_steps and --warmup_ratio exclude each other")
    if args.checkpointing_steps not in (None, "epoch") and not re.fullmatch(r"[1-9]\d*", args.checkpointing_steps):
        stop(f"--checkpointing_steps {args.checkpointing_steps}: takes a number of steps, or epoch")
    needs_folder = ("checkpointing_steps", "save_total_limit", "with_tracking", "resume_from_checkpoint")
    if not args.output_dir and (wanting := [f"--{flag}" for flag in needs_folder if getattr(args, flag)]):
        stop(f"{wanting[0]} needs an --output_dir")
    if args.output_dir:
        check_output_dir(Path(args.output_dir), args)
    return args


def read_config(file: str, parser: argparse.ArgumentParser) -> list[str]:
    """A flat YAML mapping of flag names to values, as the command line that means the same."""
    import yaml

    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        stop(f"--config {file}: {' '.join(str(error).split())}")
    known = [
        option.lstrip("-") for option in parser._option_string_actions if option not in ("-h", "--config", "--help")
    ]
    if not isinstance(values, dict):
        stop(f"--config {file}: must hold lines such as `learning_rate: 5e-5`")
    for key, value in values.items():
        if key not in known:
            stop(f"--config {file}: there is no flag {key!r}{suggestion(str(key), known)}")
        if isinstance(value, (dict, list)):
            stop(f"--config {file}: {key} takes one value, not {value}")
    return [f"--{key}={value}" for key, value in values.items() if value is not None]


def check_output_dir(folder: Path, args: argparse.Namespace) -> None:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not existing.is_dir():
        stop(f"--output_dir {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        stop(f"--output_dir {folder}: {existing} cannot be written to")
    earlier = (folder / "log.jsonl").exists()
    if (
        args.resume_from_checkpoint == "latest"
    ):  # with nothing there yet it is a first start, so that restarts are easy
        earlier = (folder / "all_results.json").exists() and not checkpoints(folder)
    elif args.resume_from_checkpoint:
        earlier = False
        if not (Path(args.resume_from_checkpoint) / "progress.json").is_file():
            stop(
                f"--resume_from_checkpoint {args.resume_from_checkpoint}: there is no checkpoint of this script there"
            )
    if earlier and not args.overwrite_output_dir:
        stop(
            f"--output_dir {folder} holds an earlier run: continue it with --resume_from_checkpoint latest if it has "
            "checkpoints, replace it with --overwrite_output_dir, or name another folder"
        )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first: by steps, and one after the evaluation of an epoch after one before.

    One that cannot say its step counts as the newest.
    """

    def age(path: Path) -> tuple[float, bool]:
        try:
            return json.loads((path / "progress.json").read_text())["step"], path.name.startswith("epoch_")
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf, False

    named = [path for path in folder.glob("*_*") if re.fullmatch(r"(step|epoch)_\d+", path.name)]
    return sorted((path for path in named if any(path.glob("*.json"))), key=age)


if __name__ == "__main__":
    ARGS = parse_args(sys.argv[1:])  # here, so that --help and mistakes need not wait seconds for the imports below

import accelerate
import datasets
import evaluate
import numpy as np
import psutil
import torch
import transformers
import xxhash
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object, is_torch_xla_available, set_seed
from datasets import Dataset, DatasetDict, Features, Value, load_dataset
from safetensors import SafetensorError
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

# --- Data


@dataclass
class Task:
    """What is learned: the columns that are read, and what the answers are called."""

    metrics: list[str]
    text_columns: list[str]
    values: list[Any] | None  # of column `label`, by class id; None: regression
    labels: list[str] | None  # the same classes' names, by class id


def load_data(args: argparse.Namespace) -> tuple[DatasetDict, Task]:
    """Read the splits `train` and `validation` (for MNLI `validation_matched` and `validation_mismatched`)."""
    if args.task_name:
        source = args.dataset_name or "nyu-mll/glue"
        splits = read(source, source, args.task_name)
    else:
        splits = DatasetDict(train=read_file(args.train_file), validation=read_file(args.validation_file))

    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    for name in list(splits):
        if (kind := name.split("_")[0]) not in limits:
            del splits[name]  # GLUE's test splits have no labels
        elif limits[kind]:
            splits[name] = splits[name].select(range(min(limits[kind], len(splits[name]))))
    for name, data in splits.items():
        if "label" not in data.column_names:
            stop(f"the {name} data has no column `label`; its columns are {', '.join(data.column_names)}")
        if len(data) == 0:
            stop(f"the {name} data has no rows")
        if None in (labels := data.unique("label")) or "" in labels:
            row = next(row for row, label in enumerate(data["label"]) if label in (None, ""))
            stop(f"row {row + 1} of the {name} data has no label")

    text_columns = GLUE[args.task_name] if args.task_name else find_text_columns(splits["train"].column_names)
    for name, data in splits.items():
        if missing := [column for column in text_columns if column not in data.column_names]:
            stop(f"the {name} data has no column {missing[0]!r}; its columns are {', '.join(data.column_names)}")
        for column in text_columns:
            if data.features[column] != Value("string"):
                splits[name] = splits[name].cast_column(column, Value("string"))
    if not args.task_name:
        splits = type_labels(splits)

    feature = splits["train"].features["label"]
    if feature.dtype.startswith("float"):
        return splits, Task(METRICS[args.task_name or "regression"], text_columns, None, None)
    values = list(range(len(feature.names))) if args.task_name else sorted(splits["train"].unique("label"))
    labels = list(feature.names) if args.task_name else [str(value) for value in values]
    if len(values) < 2:
        stop(f"the training data has only one class, {labels[0]!r}: there is nothing to tell apart")
    for name, data in splits.items():
        if unknown := set(data.unique("label")) - set(values):
            row = next(row for row, label in enumerate(data["label"]) if label in unknown)
            stop(f"row {row + 1} of the {name} data has the label {data[row]['label']!r}, which was never trained")
    own = "two classes" if len(values) == 2 else "classes"
    return splits, Task(METRICS.get(args.task_name or own, ["accuracy"]), text_columns, values, labels)


def read(source: str, *args: str, **options: Any) -> DatasetDict | Dataset:
    """`load_dataset(*args, **options)`, which names `source` where it cannot be read."""
    try:
        return load_dataset(*args, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        stop(f"{source} could not be read: {' '.join(str(error.__cause__ or error).split())}")


def read_file(file: str) -> Dataset:
    """A .csv or .json file; every column of a .csv is text here, so that NA, 007 and 1e5 stay what they are."""
    options: dict[str, Any] = {"data_files": file, "split": "train"}
    if Path(file).suffix == ".json":
        return read(file, "json", **options)
    try:
        with open(file, encoding="utf-8-sig", newline="") as rows:
            header, first = ([*itertools.islice(csv.reader(rows), 2)] + [None] * 2)[:2]
    except (UnicodeDecodeError, csv.Error) as error:
        stop(f"{file} could not be read: {error}")
    if first is None:
        stop(f"{file} has no rows")
    features = Features({column: Value("string") for column in header})
    return read(file, "csv", features=features, keep_default_na=False, encoding="utf-8-sig", **options)


def find_text_columns(columns: list[str]) -> list[str]:
    if {"sentence1", "sentence2"} <= set(columns):
        return ["sentence1", "sentence2"]
    if not (others := [column for column in columns if column != "label"]):
        stop("the training data has no column of text beside `label`")
    return others[:2]


def type_labels(splits: DatasetDict) -> DatasetDict:
    """Labels written in digits are numbers: whole ones are classes, others mean regression. Booleans become names."""
    train = splits["train"]
    if train.features["label"] == Value("bool"):
        return splits.cast_column("label", Value("string"))
    if train.features["label"] != Value("string"):
        return splits
    written = train.unique("label")
    for pattern, kind in ((r"[+-]?\d+", "int64"), (r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", "float64")):
        if all(re.fullmatch(pattern, label.strip()) for label in written):
            for name, data in splits.items():
                if wrong := [label for label in data.unique("label") if not re.fullmatch(pattern, label.strip())]:
                    stop(f"the {name} data has the label {wrong[0]!r}, but the training labels are numbers ({kind})")
            return splits.cast_column("label", Value(kind))
    return splits


def tokenize(
    data: Dataset, task: Task, tokenizer: Tokenizer, args: argparse.Namespace, name: str
) -> tuple[Dataset, np.ndarray]:
    """The model's inputs with their `labels` (class ids, or floats), and every row's full length in tokens, [rows]."""
    ids = {value: index for index, value in enumerate(task.values)} if task.values else None

    def encode(rows: dict[str, list]) -> dict[str, list]:
        texts = [[text or "" for text in rows[column]] for column in task.text_columns]
        batch = dict(tokenizer(*texts, truncation=True, max_length=args.max_length))
        batch["labels"] = [float(label) if ids is None else ids[label] for label in rows["label"]]
        batch["length"] = [len(row) for row in batch["input_ids"]]
        if at_limit := [row for row, length in enumerate(batch["length"]) if length >= args.max_length]:
            uncut = tokenizer(*[[text[row] for row in at_limit] for text in texts], verbose=False)["input_ids"]
            for row, tokens in zip(at_limit, uncut, strict=True):
                batch["length"][row] = len(tokens)
        return batch

    workers = args.preprocessing_num_workers
    data = data.map(
        encode, batched=True, remove_columns=data.column_names, num_proc=workers, desc=f"Tokenizing {name}"
    )
    return data.remove_columns("length"), np.array(data.with_format("numpy")["length"])


def fingerprint(data: Dataset) -> str:
    """16 hexadecimal digits that change with any token or label of any row, and with the order of the rows."""
    digest = hashlib.sha256()
    for table in data.with_format("arrow").iter(batch_size=10_000):
        tokens = table["input_ids"].combine_chunks()
        for values in (tokens.value_lengths(), tokens.flatten(), table["labels"]):
            digest.update(values.to_numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(data: dict[str, Dataset], lengths: dict[str, np.ndarray], task: Task, max_length: int) -> str:
    """A table of what will be trained on: rows, tokens, how many texts are cut, and the shares of the classes."""
    lines = [f"{'':24}{'rows':>9}  {'tokens: median':>14}{'95 %':>6}{'max':>7}{'cut':>8}   labels"]
    for name, dataset in data.items():
        labels = np.array(dataset.with_format("numpy")["labels"])
        if task.labels is None:
            shares = f"{labels.min():.3g} to {labels.max():.3g}, mean {labels.mean():.3g}"
        else:
            counts = np.bincount(labels, minlength=len(task.labels))
            largest = sorted(range(len(counts)), key=lambda index: -counts[index])
            shares = ", ".join(f"{task.labels[i]} {counts[i] / len(labels):.1%}" for i in largest[:5])
            shares += f" and {len(counts) - 5} more" * (len(counts) > 5)
        tokens = lengths[name]
        middle, high = np.percentile(tokens, [50, 95])
        cut = int((tokens > max_length).sum())
        lines.append(f"{name:24}{len(tokens):>9,}  {middle:>14.0f}{high:>6.0f}{tokens.max():>7,}{cut:>8,}   {shares}")
    return "\n".join([*lines, f"text: {' + '.join(task.text_columns)}, cut at {max_length} tokens"])


@dataclass(eq=False)
class GlobalBatchSampler(Sampler[list[int]]):
    """Batches of row numbers in an order that (seed, epoch) and the size of the global batch decide alone.

    A global batch is what one optimizer step sees. It is handed out in device batches, one after the other, so that
    any number of processes and accumulation steps makes the same global batches of them. The last one of an epoch is
    filled up from the start of the epoch's order: every step is full.
    """

    rows: int
    global_batch: int
    batch_size: int  # of one device
    seed: int
    lengths: np.ndarray | None  # in tokens, [rows]; None: do not bring rows of like length together
    epoch: int = 0
    first: int = 0  # global batch of the epoch
    drop_last: ClassVar[bool] = False  # read by Accelerate
    window: ClassVar[int] = 50  # global batches among which rows of like length are brought together

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.global_batch)

    def start(self, epoch: int, first: int = 0) -> None:
        """Make the next iteration that of `epoch`, beginning with its global batch number `first`."""
        self.epoch, self.first = epoch, first

    def global_batches(self) -> np.ndarray:
        """This epoch's row numbers, [steps, global batch]."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = np.resize(generator.permutation(self.rows), self.steps_per_epoch * self.global_batch)
        if self.lengths is not None:
            size = self.window * self.global_batch
            windows = [order[begin : begin + size] for begin in range(0, len(order), size)]
            order = np.concatenate([rows[np.argsort(-self.lengths[rows], kind="stable")] for rows in windows])
        batches = order.reshape(-1, self.global_batch)
        return batches if self.lengths is None else generator.permutation(batches)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.global_batches()[self.first :]:
            for begin in range(0, self.global_batch, self.batch_size):
                yield rows[begin : begin + self.batch_size].tolist()

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first) * (self.global_batch // self.batch_size)


# --- Model


def load_model(args: argparse.Namespace, task: Task) -> tuple[Model, Tokenizer]:
    """The model with a head for the task, in float32, and its tokenizer. A model's own order of classes is kept."""
    source = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(args.model_name_or_path, **source)
        if task.labels:
            keep_model_labels(config, task)
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {label: index for index, label in enumerate(task.labels)}
        else:
            config.num_labels = 1
        config.problem_type = "single_label_classification" if task.labels else "regression"
        tokenizer = AutoTokenizer.from_pretrained(
            args.model_name_or_path, use_fast=not args.use_slow_tokenizer, **source
        )
        if args.use_slow_tokenizer and tokenizer.is_fast:
            say("warning: --use_slow_tokenizer changes nothing: this model has a fast tokenizer only")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        config.pad_token_id = tokenizer.pad_token_id
        on_cpu = PartialState().device.type == "cpu"
        model = AutoModelForSequenceClassification.from_pretrained(
            args.model_name_or_path,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
            # on the CPU, dropout inside SDPA costs more than the attention matrix it saves
            attn_implementation=args.attn_implementation or ("eager" if on_cpu else None),
            **source,
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        stop(
            f"--model_name_or_path {args.model_name_or_path} has a head of another size than the {config.num_labels} "
            "labels of the data; --ignore_mismatched_sizes starts a new head"
        )
    except (OSError, ValueError) as error:
        stop(f"--model_name_or_path {args.model_name_or_path}: {' '.join(str(error).split())}")
    return model, tokenizer


def keep_model_labels(config: transformers.PretrainedConfig, task: Task) -> None:
    """Put the task's classes into the order that the model was trained with, if it knows them by name."""
    known = {str(label).lower(): index for index, label in config.id2label.items()}
    if sorted(known) == sorted(label.lower() for label in task.labels):
        order = sorted(range(len(task.labels)), key=lambda index: known[task.labels[index].lower()])
        task.values = [task.values[index] for index in order]
        task.labels = [str(label) for _, label in sorted(config.id2label.items())]
    elif not all(re.fullmatch(r"label_\d+", label) for label in known):
        names = ", ".join(str(label) for label in config.id2label.values())
        say(
            f"warning: the model's labels ({names}) are not the data's ({', '.join(task.labels)}); the data's are used"
        )


def parameter_groups(model: Model, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: weight decay spares biases and the weights of normalisation layers."""
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("bias") or "Norm" in type(module).__name__
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]


# --- The loop


@dataclass
class Progress:
    """Where the run is; saved with every checkpoint."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # epochs completed, with their evaluation
    batch: int = 0  # global batches of the current epoch that are done, steps skipped by the fp16 scaler included
    recent: list[list[float]] = field(default_factory=list)  # of each global batch since the last line of the log:
    #                                                          its learning rate, its mean loss, its gradient norm
    loss_total: float = 0.0  # of all global batches up to the last line of the log
    loss_count: int = 0
    lr_scheduler: dict[str, Any] = field(default_factory=dict)  # its state
    processes: int = 1
    begun: float = field(default_factory=time.perf_counter)  # on this process's clock
    seconds: float = 0.0
    results: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    settings: dict[str, Any] = field(default_factory=dict)  # what a resumed run must not change

    def position(self, sampler: GlobalBatchSampler) -> dict[str, float]:
        return {"step": self.step, "epoch": self.epoch + self.batch / sampler.steps_per_epoch}

    def take_recent(self) -> dict[str, float]:
        """A line of the log: the mean loss since the last one, and what the latest step had besides."""
        rates, losses, norms = zip(*self.recent, strict=True)
        self.loss_total, self.loss_count = self.loss_total + sum(losses), self.loss_count + len(losses)
        self.recent = []
        return {"loss": sum(losses) / len(losses), "learning_rate": rates[-1], "grad_norm": norms[-1]}


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune, evaluate and save; returns what is written to all_results.json."""
    accelerator = start_accelerator(args)
    set_seed(args.seed)  # the same new head on every process
    with accelerator.main_process_first():
        splits, task = load_data(args)
        model, tokenizer = load_model(args, task)
        args.max_length = min(args.max_length, tokenizer.model_max_length)
        tokenized = {name: tokenize(split, task, tokenizer, args, name) for name, split in splits.items()}
    data = {name: split for name, (split, _) in tokenized.items()}
    lengths = {name: tokens for name, (_, tokens) in tokenized.items()}
    say(describe(data, lengths, task, args.max_length))
    train_data, eval_data = data["train"], {name: split for name, split in data.items() if name != "train"}
    floor = baseline(task, train_data, eval_data) if accelerator.is_main_process else {}

    global_batch = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    cut_lengths = None if args.no_group_by_length else np.minimum(lengths["train"], args.max_length)
    sampler = GlobalBatchSampler(
        len(train_data), global_batch, args.per_device_train_batch_size, args.seed, cut_lengths
    )
    loading = {
        "collate_fn": collator(tokenizer, args, accelerator.mixed_precision),
        "num_workers": args.dataloader_num_workers,
        "generator": torch.Generator(),  # or each iteration takes a number from the stream that dropout draws on
    }
    train_loader = accelerator.prepare(DataLoader(train_data, batch_sampler=sampler, **loading))
    eval_loaders = {}
    for name, split in eval_data.items():
        in_order = split.select(by_length(lengths[name]))
        eval_loaders[name] = accelerator.prepare(
            DataLoader(in_order, batch_size=args.per_device_eval_batch_size, **loading)
        )

    num_epochs, max_steps = args.num_train_epochs, args.num_train_epochs * sampler.steps_per_epoch
    if args.max_train_steps:
        num_epochs, max_steps = math.ceil(args.max_train_steps / sampler.steps_per_epoch), args.max_train_steps
    # the fused kernel would skip a step on its own where the fp16 scaler says so, and Accelerate would not see it
    fused = accelerator.device.type != "xla" and accelerator.scaler is None
    groups = parameter_groups(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, fused=fused)
    warmup_steps = args.num_warmup_steps or math.ceil(args.warmup_ratio * max_steps)
    lr_scheduler = transformers.get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, max_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    # lr_scheduler is not prepared: it would move once for every process in each step

    set_seed(args.seed, device_specific=True)  # dropout differs from one process to the next
    fixed = {name: getattr(args, name) for name in ("seed", "weight_decay", "max_grad_norm", "no_group_by_length")}
    fixed |= {
        "global_batch_size": global_batch,
        "schedule": name_schedule(args, warmup_steps, max_steps),
        "data": fingerprint(train_data),
        "model": name_model(accelerator.unwrap_model(model)),
    }
    progress = open_run(args, accelerator, model, lr_scheduler, fixed)
    recent: list[tuple] = []  # the steps since the last look at the device: learning rate, loss and gradient norm
    save = functools.partial(save_checkpoint, accelerator, args, model, lr_scheduler, progress, recent)
    stop_signal = StopSignal(accelerator)
    stop_here = functools.partial(leave, accelerator, args, progress, stop_signal, save)
    evaluate_now = functools.partial(evaluate_model, accelerator, model, eval_loaders, lengths, task, stop_signal)
    checkpoint_steps = int(args.checkpointing_steps) if args.checkpointing_steps not in (None, "epoch") else 0
    bar = tqdm(total=max_steps, initial=progress.step, desc="Training", disable=not accelerator.is_main_process)

    while progress.epoch < num_epochs or progress.step < (args.max_train_steps or 0):
        model.train()
        sampler.start(progress.epoch, progress.batch)
        mean_loss = 0.0
        for batch in train_loader:
            if progress.step == max_steps:
                break
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
                optimizer.step()
                optimizer.zero_grad()
            mean_loss += loss.detach() / args.gradient_accumulation_steps
            if not accelerator.sync_gradients:
                continue  # the global batch is not complete

            recent.append((lr_scheduler.get_last_lr()[0], mean_loss, grad_norm))
            mean_loss, progress.batch = 0.0, progress.batch + 1
            if accelerator.optimizer_step_was_skipped:
                continue  # by the fp16 loss scaler: neither the schedule nor the count moves
            lr_scheduler.step()
            progress.step += 1
            bar.update()

            if progress.step % args.logging_steps == 0 or progress.step == max_steps:
                read_recent(accelerator, progress, recent)
                line = progress.take_recent()
                bar.set_postfix(loss=f"{line['loss']:.4f}", lr=f"{line['learning_rate']:.2e}")
                log(accelerator, args, progress.position(sampler) | line)
            if checkpoint_steps and progress.step % checkpoint_steps == 0:
                save(f"step_{progress.step}")
            if stop_signal():
                stop_here()

        progress.results = (evaluate_now() or stop_here()) | progress.position(sampler)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        log(accelerator, args, progress.results)
        say(scores(progress.results, floor))
        if args.checkpointing_steps == "epoch":
            save(f"epoch_{progress.epoch - 1}")

    bar.close()
    if not progress.results:  # --num_train_epochs 0
        progress.results = (evaluate_now() or stop_here()) | progress.position(sampler)
        say(scores(progress.results, floor))
    stop_signal.restore()
    return finish(accelerator, args, model, tokenizer, progress, floor)


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """The devices, the precision and the processes, as the launcher or the flags say."""
    logging_to = None
    if args.with_tracking:
        installed = [str(tracker) for tracker in get_available_trackers()]
        if not installed:
            stop("--with_tracking: no tracker is installed; pip install tensorboard brings one")
        if args.report_to not in ("all", *installed):
            stop(f"--report_to {args.report_to}: not installed; installed are: {', '.join(installed)}")
        logging_to = args.report_to
    # several processes on a machine without an accelerator are one run only if Accelerate is told that it is a CPU run
    no_accelerator = not (torch.accelerator.is_available() or is_torch_xla_available())
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            cpu=no_accelerator,
            log_with=logging_to,
            project_dir=args.output_dir,
        )
    except (ValueError, ImportError) as error:  # a precision that this machine has not
        stop(" ".join(str(error).split()))
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        stop("--mixed_precision fp16 needs a GPU; on a CPU take bf16 or no")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    return accelerator


def say(text: str) -> None:
    """Print above the progress bar, once for all processes."""
    if PartialState().is_main_process:
        tqdm.write(text)


def by_length(lengths: np.ndarray) -> np.ndarray:
    """Row numbers, longest row first: little padding, and too little memory shows at once."""
    return np.argsort(-lengths, kind="stable")


def collator(tokenizer: Tokenizer, args: argparse.Namespace, mixed_precision: str) -> Callable:
    if args.pad_to_max_length:
        return DataCollatorWithPadding(tokenizer, padding="max_length", max_length=args.max_length)
    multiple = {"no": None, "fp8": 16}.get(mixed_precision, 8)  # what tensor cores want
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)


def read_recent(accelerator: Accelerator, progress: Progress, recent: list[tuple]) -> None:
    """Bring the losses of the latest steps from the device: the one place where the loop waits for it.

    Raises:
        SystemExit: 1, where a loss or a gradient is not finite.
    """
    if not recent:
        return
    rates, losses, norms = zip(*recent, strict=True)
    losses = accelerator.reduce(torch.stack(losses), "mean").tolist()
    norms = torch.stack([torch.as_tensor(norm) for norm in norms]).tolist()
    for index, latest in enumerate(zip(rates, losses, norms, strict=True)):
        rate, loss, norm = latest
        scaled = accelerator.scaler is not None  # in fp16 infinite gradients are the scaler's to deal with
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
            before = f"; the step before had loss {progress.recent[-1][1]:.4g}" if progress.recent else ""
            stop(
                f"step {progress.step - len(recent) + index + 1}: the loss is {loss:.4g} and the gradient norm "
                f"{norm:.4g}, at learning rate {rate:.4g}{before}. The usual causes: a --learning_rate too high for "
                "this model (try a tenth), no warm-up (--warmup_ratio 0.1), fp16 (try --mixed_precision bf16), "
                "or weights that were broken before. Earlier checkpoints are as they were.",
                code=1,
            )
        progress.recent.append(list(latest))
    recent.clear()


class StopSignal:
    """SIGTERM and SIGINT, noted when they come, so that the step in hand is finished; a second SIGINT ends at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.received, self.since = 0, 0.0
        several = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        self.group = torch.distributed.new_group(backend="gloo") if several else None
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(self, number: int, _frame: Any) -> None:
        # torchrun hands on the SIGINT that a terminal has sent to all of us: within a second it is the same one
        again = time.monotonic() - self.since > ("LOCAL_RANK" in os.environ)
        if self.received == number == signal.SIGINT and again:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self.since = number, time.monotonic()

    def __call__(self) -> int:
        """The signal that any process has got, or 0. The hosts tell each other: no device is waited for."""
        if self.group is None:
            return self.received
        number = torch.tensor(self.received)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self.group)
        return int(number)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


# --- Evaluation


def predict(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: DataLoader,
    lengths: np.ndarray,
    stop_signal: StopSignal,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Logits, float32 [rows, classes], and labels, [rows], of every row once, in the order of the file, on the CPU.

    None after a signal to stop.
    """
    model.eval()
    parts = []
    for batch in loader:
        if stop_signal():
            return None
        with torch.inference_mode():
            logits = model(**batch).logits.float()
        parts.append(accelerator.gather_for_metrics((logits, batch["labels"])))
    place = torch.from_numpy(np.argsort(by_length(lengths)))
    logits, labels = (torch.cat(column).cpu()[place] for column in zip(*parts, strict=True))
    return logits, labels


def evaluate_model(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loaders: dict[str, DataLoader],
    lengths: dict[str, np.ndarray],
    task: Task,
    stop_signal: StopSignal,
) -> dict[str, float]:
    """`eval_loss` and `eval_<metric>` of each validation split, known to every process; MNLI's second ends in _mm.

    Nothing after a signal to stop.
    """
    results = {}
    for name, loader in loaders.items():
        predicted = predict(accelerator, model, loader, lengths[name], stop_signal)
        if predicted is None:
            return {}
        logits, labels = predicted
        if accelerator.is_main_process:
            if task.labels is None:
                predictions, loss = logits.squeeze(-1), F.mse_loss(logits.squeeze(-1), labels)
            else:
                predictions, loss = logits.argmax(-1), F.cross_entropy(logits, labels)
            values = compute_metrics(task, predictions.numpy(), labels.numpy()) | {"loss": loss.item()}
            results |= {f"eval_{metric}{suffix(name)}": value for metric, value in values.items()}
    results = broadcast_object_list([results])[0]
    if not all(math.isfinite(value) for value in results.values()):
        stop(f"the evaluation gave {results}: the weights are broken. Earlier checkpoints are as they were.", code=1)
    return results


def suffix(split: str) -> str:
    return "_mm" if split == "validation_mismatched" else ""


def correlation(measure: Callable, references: np.ndarray, predictions: np.ndarray) -> float:
    if np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0  # undefined: one side is constant
    return measure(references, predictions)[0]


class GlueMetric(evaluate.Metric):
    """GLUE's metrics and those for own data, from scikit-learn and scipy, without `evaluate.load`'s download.

    Definitions: Wang et al. 2019, https://arxiv.org/abs/1804.07461, and https://gluebenchmark.com.
    """

    def _info(self) -> evaluate.MetricInfo:
        value = Value("float64" if self.config_name == "regression" else "int64")
        features = Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="", features=features, format="numpy"
        )

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, names: list[str], positive: int
    ) -> dict[str, float]:
        measures = {
            "accuracy": lambda: accuracy_score(references, predictions),
            "f1": lambda: f1_score(references, predictions, labels=[positive], average="macro", zero_division=0),
            "macro_f1": lambda: f1_score(references, predictions, average="macro", zero_division=0),
            "matthews_correlation": lambda: matthews_corrcoef(references, predictions),
            "mse": lambda: mean_squared_error(references, predictions),
            "pearson": lambda: correlation(pearsonr, references, predictions),
            "spearmanr": lambda: correlation(spearmanr, references, predictions),
        }
        return {name: float(measures[name]()) for name in names}


def compute_metrics(task: Task, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The task's metrics of predicted and true class ids or values, both [rows]; F1 is that of the second class."""
    metric = GlueMetric(config_name="regression" if task.labels is None else "classes", keep_in_memory=True)
    positive = task.values.index(sorted(task.values)[1]) if task.values else 0
    return metric.compute(predictions=predictions, references=references, names=task.metrics, positive=positive)


def baseline(task: Task, train_data: Dataset, eval_data: dict[str, Dataset]) -> dict[str, float]:
    """`baseline_<metric>`: the score of always answering the training data's commonest class, or its mean."""
    labels = np.array(train_data.with_format("numpy")["labels"])
    answer = labels.mean() if task.labels is None else np.bincount(labels).argmax()
    floor = {}
    for name, split in eval_data.items():
        references = np.array(split.with_format("numpy")["labels"])
        values = compute_metrics(task, np.full(len(references), answer), references)
        floor |= {f"baseline_{metric}{suffix(name)}": value for metric, value in values.items()}
    return floor


def scores(results: dict[str, float], floor: dict[str, float]) -> str:
    """One line: where the run is, and each score beside the one that needs no model."""
    words = []
    for key, value in results.items():
        if key.startswith("eval_"):
            name, least = key.removeprefix("eval_"), floor.get(key.replace("eval_", "baseline_"))
            words.append(f"{name} {value:.4f}" + (f" (baseline {least:.4f})" if least is not None else ""))
    return f"epoch {results['epoch']:g}, step {results['step']}: {', '.join(words)}"


# --- Results


def name_schedule(args: argparse.Namespace, warmup_steps: int, max_steps: int) -> str:
    """All that decides the learning rate at a step; a constant one may go on for longer than was planned."""
    end = "" if args.lr_scheduler_type.startswith("constant") else f" of {max_steps}"
    return f"{args.lr_scheduler_type} from {args.learning_rate:g}, {warmup_steps} warm-up steps{end}"


def name_model(model: Model) -> str:
    """What a checkpoint has to fit: architecture, size and configuration, wherever the model was loaded from."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    number = zlib.crc32(json.dumps(config, sort_keys=True, default=str).encode())
    return f"{type(model).__name__} of {model.num_parameters():,} parameters, configuration {number:08x}"


def open_run(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    settings: dict[str, Any],
) -> Progress:
    """Make or clear --output_dir, start the trackers, and go to where --resume_from_checkpoint left off."""
    progress = Progress(settings=settings)
    if not args.output_dir:
        return progress
    folder, checkpoint = Path(args.output_dir), None
    if args.resume_from_checkpoint:
        found = find_checkpoint(args) if accelerator.is_main_process else None
        checkpoint = broadcast_object_list([found])[0]
        say(f"going on from {checkpoint}" if checkpoint else f"{folder} has no checkpoint yet: this is a first start")
    if checkpoint:
        progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
        for name, value in settings.items():
            if (was := progress.settings.get(name)) != value:
                stop(
                    f"--resume_from_checkpoint {checkpoint}: {name} was {was} there and is {value} here; "
                    "take the same, or start a new run in another --output_dir"
                )
        accelerator.load_state(checkpoint)
        accelerator.step = 0  # counts device batches; a checkpoint is always between two global batches
        lr_scheduler.load_state_dict(progress.lr_scheduler)
        if progress.processes != accelerator.num_processes:  # their random numbers cannot go on where they were
            set_seed(args.seed + progress.step, device_specific=True)
    progress.begun = time.perf_counter() - progress.seconds
    together(accelerator, functools.partial(folder.mkdir, parents=True, exist_ok=True), folder)
    if accelerator.is_main_process:
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        needed, free = weights * (4 if args.checkpointing_steps else 1), shutil.disk_usage(folder).free
        if free < needed:
            stop(f"--output_dir {folder}: this run needs {needed / 1e6:,.0f} MB there, {free / 1e6:,.0f} MB are free")
        for left in folder.glob(".*_*.*"):
            if re.fullmatch(r"\.(step|epoch)_\d+\.(partial|old)", left.name):  # of a run that was killed
                shutil.rmtree(left)
        if checkpoint:
            shutil.copy(checkpoint / "log.jsonl", folder / "log.jsonl")  # forget what came after the checkpoint
        else:
            for old in [*checkpoints(folder), folder / "log.jsonl", folder / "all_results.json"]:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    if args.with_tracking:
        shown = {flag: value for flag, value in vars(args).items() if isinstance(value, (str, int, float))}
        accelerator.init_trackers("glue_no_trainer", shown)
    return progress


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The folder that --resume_from_checkpoint names; for `latest` the newest whole one in --output_dir, if any."""
    if args.resume_from_checkpoint != "latest":
        if wrong := damage(Path(args.resume_from_checkpoint)):
            stop(f"--resume_from_checkpoint {args.resume_from_checkpoint} is damaged: {wrong}; give an earlier one")
        return Path(args.resume_from_checkpoint)
    found = checkpoints(Path(args.output_dir))
    for checkpoint in reversed(found):
        if not (wrong := damage(checkpoint)):
            return checkpoint
        say(f"warning: {checkpoint} is damaged: {wrong}; the one before is tried")
    if found:
        stop(f"--resume_from_checkpoint latest: every checkpoint in {args.output_dir} is damaged")
    return None


def checksum(file: Path) -> str:
    digest, block = xxhash.xxh3_64(), bytearray(1 << 20)
    with open(file, "rb", buffering=0) as content:
        while size := content.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()


def files_in(checkpoint: Path) -> dict[str, Path]:
    return {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; nothing if every file is there and is as it was written."""
    try:
        sums = json.loads((checkpoint / "checksums.json").read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError):
        return "checksums.json is missing or cannot be read"
    files = files_in(checkpoint)
    if files.keys() != {"checksums.json", *(name for name, _ in sums)}:
        return f"it has not the files that checksums.json names but {', '.join(files)}"
    return next((f"{name} is not as it was written" for name, was in sums if checksum(files[name]) != was), "")


def to_disk(path: Path) -> None:
    """Wait until the file, or the folder's list of names, would survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def together(accelerator: Accelerator, write: Callable[[], object], target: Path) -> None:
    """Let every process `write` its part of `target`; if one of them cannot, all end, with exit code 1."""
    failure = None
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        full = shutil.disk_usage(target.parent).free < 1 << 20
        if not full and not isinstance(error, OSError):
            raise
        failure = f"the disk is full ({error})" if full else str(error)
    if failures := [text for text in gather_object([failure]) if text]:
        if target.name.endswith(".partial"):
            shutil.rmtree(target, ignore_errors=True)
        stop(f"{target} could not be written: {failures[0]}. Earlier checkpoints are as they were.", code=1)


def log(accelerator: Accelerator, args: argparse.Namespace, line: dict[str, float]) -> None:
    """One line for log.jsonl and the trackers."""
    if args.output_dir and accelerator.is_main_process:
        file = Path(args.output_dir) / "log.jsonl"
        try:
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        except OSError as error:
            stop(f"{file} could not be written: {error}. Checkpoints are as they were.", code=1)
    if args.with_tracking:
        accelerator.log(line, step=line["step"])


def save_checkpoint(
    accelerator: Accelerator,
    args: argparse.Namespace,
    model: torch.nn.Module,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    progress: Progress,
    recent: list[tuple],
    name: str,
) -> None:
    """Save all that decides what comes next: written aside, flushed to the disk, and only then given its name."""
    read_recent(accelerator, progress, recent)
    if not torch.nn.utils.get_total_norm([weight.detach() for weight in model.parameters()]).isfinite():
        stop(
            f"step {progress.step}: the weights are not finite; try a lower --learning_rate. "
            "Earlier checkpoints are as they were.",
            code=1,
        )
    progress.lr_scheduler, progress.processes = lr_scheduler.state_dict(), accelerator.num_processes
    progress.seconds = time.perf_counter() - progress.begun
    folder = Path(args.output_dir)
    aside, old = folder / f".{name}.partial", folder / f".{name}.old"

    def seal() -> None:
        if not accelerator.is_main_process:
            return
        (aside / "progress.json").write_text(json.dumps(asdict(progress), indent=2), encoding="utf-8")
        (folder / "log.jsonl").touch()
        shutil.copy(folder / "log.jsonl", aside / "log.jsonl")
        files = files_in(aside)
        with ThreadPoolExecutor() as pool:
            sums, _ = pool.map(checksum, files.values()), list(pool.map(to_disk, files.values()))
            text = json.dumps(dict(zip(files, sums, strict=True)), indent=2)
        (aside / "checksums.json").write_text(text, encoding="utf-8")
        for path in [aside / "checksums.json", *(path for path in aside.rglob("*") if path.is_dir()), aside]:
            to_disk(path)

    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    together(accelerator, functools.partial(accelerator.save_state, aside), aside)
    together(accelerator, seal, aside)
    if accelerator.is_main_process:
        if (folder / name).exists():
            (folder / name).rename(old)
        aside.rename(folder / name)
        to_disk(folder)
        shutil.rmtree(old, ignore_errors=True)
        found = checkpoints(folder)
        found = found[: found.index(folder / name) + 1]  # those after it are of steps that are taken again
        for path in found[: -args.save_total_limit] if args.save_total_limit else []:
            shutil.rmtree(path.rename(folder / f".{path.name}.old"))
    accelerator.wait_for_everyone()


def leave(
    accelerator: Accelerator,
    args: argparse.Namespace,
    progress: Progress,
    stop_signal: StopSignal,
    save: Callable[[str], None],
) -> NoReturn:
    """After a signal: save a checkpoint, say how to go on from it, and end with the signal's exit code."""
    number = stop_signal()
    name = signal.Signals(number).name
    if args.output_dir:
        save(f"step_{progress.step}")
        say(f"{name}: saved {Path(args.output_dir) / f'step_{progress.step}'}; to go on:\n{resume_command()}")
    else:
        say(f"{name}: stopped after step {progress.step}; nothing is saved without an --output_dir")
    for known in stop_signal.before:  # the launcher repeats it as soon as one of us has left
        signal.signal(known, signal.SIG_IGN)
    accelerator.end_training()
    sys.exit(128 + number)


def resume_command() -> str:
    """The command line that goes on with this run: the launcher's if there is one, else that of this process."""
    this, flags = psutil.Process(), sys.argv[1:]
    lines = [process.cmdline() for process in (this.parent(), this) if process]
    command = next((line for line in lines if flags and line[-len(flags) :] == flags), [sys.executable, *sys.argv])
    gone = r" --(resume_from_checkpoint[ =]('[^']*'|\S+)|overwrite_output_dir([ =](true|false))?)"
    return re.sub(gone, "", shlex.join(command), flags=re.IGNORECASE) + " --resume_from_checkpoint latest"


def finish(
    accelerator: Accelerator,
    args: argparse.Namespace,
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    progress: Progress,
    floor: dict[str, float],
) -> dict[str, Any]:
    """Save the model and all_results.json; returns the results."""
    results: dict[str, Any] = progress.results | floor
    if progress.step:
        rows, seconds = progress.step * progress.settings["global_batch_size"], time.perf_counter() - progress.begun
        results["train_loss"] = progress.loss_total / progress.loss_count
        results |= {"train_runtime": round(seconds, 2), "train_samples_per_second": round(rows / seconds, 2)}
    results |= progress.settings
    results["versions"] = {m.__name__: m.__version__ for m in (torch, transformers, accelerate, datasets, evaluate)}
    folder = Path(args.output_dir or "")
    weights = accelerator.get_state_dict(model)

    def write() -> None:
        accelerator.unwrap_model(model).save_pretrained(
            folder, is_main_process=accelerator.is_main_process, state_dict=weights
        )
        if accelerator.is_main_process:
            tokenizer.save_pretrained(folder)
            text = json.dumps(results, indent=2, ensure_ascii=False)
            (folder / "all_results.json").write_text(text + "\n", encoding="utf-8")

    if args.output_dir:
        together(accelerator, write, folder / "model.safetensors")
        say(f"model and results are in {folder}")
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(ARGS)
