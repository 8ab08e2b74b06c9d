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
import contextlib
import csv
import ctypes
import difflib
import gc
import glob
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import textwrap
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
TEST_FILES = {  # task, or a part of one: its file for GLUE's server
    "cola": "CoLA", "mnli": "MNLI-m", "mnli_mm": "MNLI-mm", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE",
    "sst2": "SST-2", "stsb": "STS-B", "wnli": "WNLI", "ax": "AX",
}  # fmt: skip
IN_WORDS = ("mnli", "mnli_mm", "qnli", "rte", "ax")  # where the server wants the labels in words
BEST = "best.safetensors"  # the weights of the best evaluation, while training goes on
NUMBERS = {  # as labels in a .csv; 007 is a word
    "int64": r"-?(0|[1-9]\d{0,17})",
    "float64": r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?",
}
SHARED = ["*.safetensors", "*.json", "*.jsonl", "vocab.txt", "merges.txt", "*.model", "README.md", "*.png"]  # uploaded
NOT_SHARED = ["*/*", ".*", BEST]  # checkpoints, predictions, trackers' logs
HUB_TIMEOUT = 120.0  # seconds without a byte; by itself the client would wait for ever
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
METRICS = {  # what each task, or kind of own data, is scored with; the tasks not named here by accuracy
    "cola": ["matthews_correlation"],
    "mrpc": ["accuracy", "f1"],
    "qqp": ["accuracy", "f1"],
    "stsb": ["pearson", "spearmanr"],
    "two classes": ["accuracy", "macro_f1", "f1"],
    "classes": ["accuracy", "macro_f1"],
    "regression": ["mse", "pearson", "spearmanr"],
}

# --- Arguments

MEANT = {  # flags that other scripts have: what they are here
    "lr": "--learning_rate",
    "epochs": "--num_train_epochs",
    "batch_size": "--per_device_train_batch_size",
    "per_device_batch_size": "--per_device_train_batch_size",
    "max_steps": "--max_train_steps",
    "max_seq_length": "--max_length",
    "warmup_steps": "--num_warmup_steps",
    "model_name": "--model_name_or_path",
    "fp16": "--mixed_precision fp16",
    "bf16": "--mixed_precision bf16",
    "save_steps": "--checkpointing_steps",
    "do_train": "what it does unless --num_train_epochs is 0",
    "do_eval": "what it does after each epoch",
    "eval_strategy": "after each epoch, always",
}
LAUNCHERS = {  # where a launcher says how many processes it has started: where it says which of them this one is
    "WORLD_SIZE": "RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",  # srun's; SLURM_NTASKS is also there in a script that sbatch started once
}


def stop(message: str, code: int = 2) -> NoReturn:
    """End the run with a line on what the user can mend (2) or what befell it (1). One process of a machine speaks."""
    first = next((os.environ[rank] for rank in LAUNCHERS.values() if rank in os.environ), "0") == "0"
    if not first:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)  # the launcher ends all processes as soon as one has left: let the first finish its sentence
    if first or os.environ.get("LOCAL_RANK") == "0":  # the first of another machine, which may lack what that one has
        message = re.sub(r"\s*\n\s*", " ", message) + " Earlier checkpoints are as they were." * (code == 1)
        write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print  # above a progress bar
        write(f"{Path(__file__).name}: error: {message}", file=sys.stderr)
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
        if not low <= value <= min(high, sys.float_info.max):
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
            known = [option for option in self._option_string_actions if option.startswith("--")]
            message += instead(unknown[1]) or suggestion(f"--{unknown[1]}", known)
        stop(f"{message} (--help lists every flag)")


def instead(flag: str) -> str:
    return f"; here it is {MEANT[flag]}" if flag in MEANT else ""


def suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build_parser() -> argparse.ArgumentParser:
    positive, count, amount = number(int, 1), number(int, 0), number(float, 0)
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
    files: dict[str, Any] = {"nargs": "+", "metavar": "FILE"}
    add("--task_name", choices=[*GLUE, "ax"], help="a GLUE task; ax: only to predict, with a model of mnli")
    add("--dataset_name", metavar="NAME", help="a hub id or a local folder (default with --task_name: nyu-mll/glue)")
    add("--train_file", **files, help="your own data: .csv .tsv .json .jsonl .parquet, several files or globs")
    add("--validation_file", **files, help="the same columns; without it 10 %% of the rows are held out")
    add("--test_file", **files, help="the same columns, `label` not needed, for --do_predict")
    add("--do_predict", **switch, help="write the predictions for --test_file or the data set's test split")
    names = {"nargs": "+", "metavar": "A[,B]"}
    add("--text_column_names", **names, help="(default: sentence1,sentence2, else the first one or two others)")
    add("--label_column_name", default="label", metavar="NAME", help="the column with the answers")
    add("--max_train_samples", type=positive, metavar="N", help="train on the first N rows only")
    add("--max_eval_samples", type=positive, metavar="N", help="evaluate on the first N rows only")
    add("--max_predict_samples", type=positive, metavar="N", help="predict the first N rows only")
    add("--max_length", type=number(int, 4), default=128, metavar="N", help="cut longer texts at N tokens")
    add("--pad_to_max_length", **switch, help="pad every text to --max_length instead of to its batch's longest")
    add("--no_group_by_length", **switch, help="draw batches at random instead of from texts of like length")
    add("--preprocessing_num_workers", type=positive, metavar="N", help="of tokenization (default: by the rows)")
    add("--dataloader_num_workers", type=count, default=0, metavar="N", help="processes that load batches")

    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", metavar="MODEL", help="a hub id or a local folder (required)")
    add("--model_revision", default="main", metavar="REV", help="branch, tag or commit of a hub model")
    add("--use_slow_tokenizer", **switch, help="the tokenizer written in Python, where there is one still")
    add("--ignore_mismatched_sizes", **switch, help="start a new head where the model's has other classes")
    add("--attn_implementation", metavar="NAME", help="eager, sdpa ... (default: what is fast here)")
    add("--trust_remote_code", **switch, help="run code that comes with the model; read it first")

    training = parser.add_argument_group("training")
    add, one_of = training.add_argument, training.add_mutually_exclusive_group().add_argument
    add("--per_device_train_batch_size", type=positive, default=8, metavar="N", help="rows of one device at a time")
    add("--per_device_eval_batch_size", type=positive, default=8, metavar="N", help="the same in evaluation")
    add("--gradient_accumulation_steps", type=positive, default=1, metavar="N", help="batches that make one step")
    add("--num_train_epochs", type=count, default=3, metavar="N", help="passes over the data; 0 evaluates only")
    add("--max_train_steps", type=positive, metavar="N", help="stop after N optimizer steps; wins over the epochs")
    add("--learning_rate", type=amount, default=5e-5, metavar="LR", help="peak of the schedule, for AdamW")
    add("--weight_decay", type=amount, default=0.0, metavar="X", help="not for biases and normalisation layers")
    add("--max_grad_norm", type=amount, default=1.0, metavar="X", help="clip gradients to this norm; 0: never")
    schedules = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
    add("--lr_scheduler_type", choices=schedules, default="linear", help="what becomes of the learning rate")
    one_of("--num_warmup_steps", type=count, metavar="N", help="steps over which it rises from 0; 0: at once")
    one_of("--warmup_ratio", type=number(float, 0, 1), default=0.1, metavar="X", help="the same as a share of all")
    add("--load_best_model_at_end", **switch, help="save the model of the best evaluation, not of the last")
    add("--metric_for_best_model", metavar="NAME", help="loss or a metric (default: the task's first)")
    add("--early_stopping_patience", type=positive, metavar="N", help="stop after N evaluations that are not better")
    add("--mixed_precision", choices=["no", "fp16", "bf16", "fp8"], help="(default: what `accelerate config` says)")
    add("--seed", type=number(int, 0, 2**31), default=42, metavar="N", help="of the new head, data order and dropout")

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", metavar="DIR", help="where model, results and checkpoints go; nothing is saved without it")
    add("--overwrite_output_dir", **switch, help="start anew in a folder that holds an earlier run")
    add("--checkpointing_steps", metavar="N|epoch", help="save a checkpoint every N steps or after every epoch")
    add("--save_total_limit", type=positive, metavar="N", help="keep the newest N checkpoints")
    add("--resume_from_checkpoint", metavar="DIR|latest", help="go on from a checkpoint of the same run")
    add("--logging_steps", type=positive, default=10, metavar="N", help="steps between two lines of log.jsonl")
    add("--with_tracking", **switch, help="log to experiment trackers as well")
    add("--report_to", default="all", metavar="NAME", help="tensorboard, wandb, trackio ...; all: those installed")
    add("--push_to_hub", **switch, help="upload the model and its card after every epoch and at the end")
    add("--hub_model_id", metavar="NAME", help="where to, such as you/your-model (default: --output_dir's name)")
    add("--hub_token", metavar="TOKEN", help="(default: that of `hf auth login`, or HF_TOKEN)")
    add("--hub_private_repo", **switch, help="make a new repository private")
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line over the --config file; whatever can be checked without the data is checked here.

    Raises:
        SystemExit: 2, after one line that names the flag and what would be right; 0 after --help.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.config:
        flags, warm_up = read_config(args.config, parser), ("--num_warmup_steps", "--warmup_ratio")
        if any(word.startswith(warm_up) for word in argv):  # either wins over the file's
            flags = [flag for flag in flags if not flag.startswith(warm_up)]
        args = parser.parse_args([*flags, *argv])

    if not args.model_name_or_path:
        stop("--model_name_or_path is needed: a hub id such as bert-base-cased or a local folder with a model")
    if re.match(r"[./~]", args.model_name_or_path) and not Path(args.model_name_or_path).is_dir():
        stop(f"--model_name_or_path {args.model_name_or_path}: there is no such folder")
    for flag in ("--train_file", "--validation_file", "--test_file", "--text_column_names"):
        if sum(word.partition("=")[0] == flag for word in argv) > 1:
            stop(f"{flag} is given twice; it takes several values, one after the other")
    files = {flag: names for flag, names in vars(args).items() if flag.endswith("_file") and names}
    trains = bool(args.num_train_epochs or args.max_train_steps)
    source = next((f"--{flag}" for flag in ("task_name", "dataset_name") if getattr(args, flag)), None)
    if source and files:
        stop(f"{source} and --{next(iter(files))} exclude each other: {source} brings its own data")
    if not source and "train_file" not in files and (trains or not files):
        stop(f"what to train on? Give --task_name ({', '.join(GLUE)}), --dataset_name or --train_file")
    if args.task_name == "ax" and (trains or not args.do_predict):
        stop("--task_name ax is a test set: give --num_train_epochs 0 --do_predict and a model of mnli")
    if args.task_name and (args.text_column_names or args.label_column_name != "label"):
        stop("--text_column_names and --label_column_name are for your own data: GLUE's columns are known")
    for flag, names in files.items():
        setattr(args, flag, [file for name in names for file in find_files(flag, name)])
    if args.do_predict and not (source or args.test_file):
        stop("--do_predict needs a --test_file")
    if args.test_file and not args.do_predict:
        stop("--test_file is for --do_predict, which is not given")
    if args.text_column_names:
        args.text_column_names = [name.strip() for name in ",".join(args.text_column_names).split(",")]
        if not 1 <= len(set(args.text_column_names) - {""}) == len(args.text_column_names) <= 2:
            stop(f"--text_column_names {','.join(args.text_column_names)}: takes one column, or two as in a,b")
        if args.label_column_name in args.text_column_names:
            stop(f"--text_column_names: {args.label_column_name} is the column of the labels")
    if args.checkpointing_steps not in (None, "epoch") and not re.fullmatch(r"[1-9]\d*", args.checkpointing_steps):
        stop(f"--checkpointing_steps {args.checkpointing_steps}: takes a number of steps, or epoch")
    needs_folder = ("checkpointing_steps", "save_total_limit", "with_tracking", "resume_from_checkpoint", "do_predict")
    needs_folder += ("load_best_model_at_end", "push_to_hub")
    if not args.output_dir and (wanting := [f"--{flag}" for flag in needs_folder if getattr(args, flag)]):
        stop(f"{wanting[0]} needs an --output_dir")
    for_hub = ("hub_model_id", "hub_token", "hub_private_repo")
    if not args.push_to_hub and (idle := [f"--{flag}" for flag in for_hub if getattr(args, flag)]):
        stop(f"{idle[0]} is for --push_to_hub, which is not given")
    if args.push_to_hub and not trains:
        stop("--push_to_hub pushes what was trained; a folder with a model: hf upload you/name FOLDER")
    if args.hub_token and not re.fullmatch(r"[!-~]+", args.hub_token):
        stop("--hub_token: a token has no spaces and nothing but ASCII")  # the client would show it in its message
    if args.output_dir:
        check_output_dir(Path(args.output_dir), args)
    return args


def find_files(flag: str, name: str) -> list[str]:
    """The files that a value of --train_file, --validation_file or --test_file stands for."""
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not os.path.exists(name) else [name]
    if not found:
        stop(f"--{flag} {name}: no file has a name like that")
    for file in found:
        if os.path.isdir(file):
            stop(f"--{flag} {file} is a folder; its files are '{Path(file) / '*.csv'}' or the like")
        if not os.access(file, os.R_OK):
            stop(f"--{flag} {file}: there is no such file, or it may not be read")
        if Path(file).suffix.lower() not in SUFFIXES:
            stop(f"--{flag} {file}: can read {' '.join(SUFFIXES)}, told by the end of the name")
    return found


def read_config(file: str, parser: argparse.ArgumentParser) -> list[str]:
    """A flat YAML mapping of flag names to values, as the command line that means the same."""
    import yaml

    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        stop(f"--config {file}: {error}")
    known = [name.lstrip("-") for name in parser._option_string_actions if name not in ("-h", "--help", "--config")]
    if not isinstance(values, dict):
        stop(f"--config {file}: must hold lines such as `learning_rate: 5e-5`")
    flags: list[str] = []
    for key, value in values.items():
        if key not in known:
            stop(f"--config {file}: there is no flag {key!r}{instead(str(key)) or suggestion(str(key), known)}")
        if isinstance(value, dict) or (isinstance(value, list) and not key.endswith(("_file", "_names"))):
            stop(f"--config {file}: {key} takes one value, not {value}")
        if key == "mixed_precision" and value is False:
            value = "no"  # which YAML reads as false
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={value}")
    return flags


def check_output_dir(folder: Path, args: argparse.Namespace) -> None:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if os.path.exists(path))
    if not existing.is_dir():
        stop(f"--output_dir {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        stop(f"--output_dir {folder}: {existing} cannot be written to")
    resume, instead = args.resume_from_checkpoint, "replace it with --overwrite_output_dir, or name another folder"
    if resume and resume != "latest" and not os.path.isfile(Path(resume) / "progress.json"):
        stop(f"--resume_from_checkpoint {resume}: there is no checkpoint of this script there")
    if args.overwrite_output_dir:
        return
    # `latest` with nothing there yet is a first start: restarts are easy
    if resume == "latest" and (folder / "all_results.json").exists() and not checkpoints(folder):
        stop(f"--output_dir {folder} holds a run that has ended and no checkpoint to go on from; {instead}")
    if not resume and (folder / "log.jsonl").exists():
        go_on = "continue it with --resume_from_checkpoint latest if it has checkpoints"
        stop(f"--output_dir {folder} holds an earlier run: {go_on}, {instead}")


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
    ours = ("progress.json", "checksums.json")  # one of them may be lost
    return sorted((path for path in named if any((path / name).exists() for name in ours)), key=age)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop begins, Ctrl-C just ends, without a traceback
    if sys.stdout:  # where it is a file on Windows it has not every character
        sys.stdout.reconfigure(errors="backslashreplace")
    ARGS = parse_args(sys.argv[1:])  # here, so that --help and mistakes need not wait seconds for the imports below

# or torch's C++ warns in each process of what is meant to be so (find_unused_parameters), and of nothing else of use
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
gc.disable()  # or a fifth of the time of the imports goes into looking for garbage among what they make

import accelerate
import datasets
import evaluate
import huggingface_hub
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers
import xxhash
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DynamoBackend, GradientAccumulationPlugin, LoggerType, broadcast_object_list, set_seed
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

gc.freeze()  # nor does any later collection look at it again: a seventh of the time of tokenizing
gc.enable()

# --- Data


@dataclass
class Task:
    """What is learned: the columns that are read, and what the answers are called."""

    metrics: list[str]
    text_columns: list[str]
    values: list[Any] | None  # of column `label`, by class id; None: regression
    labels: list[str] | None  # the same classes' names, by class id
    words: list[str] | None = None  # and these as the data spells them
    mean: float = 0.0  # of the training labels, in regression


def load_data(args: argparse.Namespace) -> tuple[dict[str, Dataset], Task]:
    """The splits by name (train; validation or MNLI's two; what to predict), and what is to be learned from them.

    Their columns are `label`, except in what is to be predicted, and those of Task.text_columns, as text.
    """
    splits = read_splits(args)
    known = next(iter(splits.values())).column_names
    text_columns = (
        GLUE.get(args.task_name) or args.text_column_names or find_text_columns(known, args.label_column_name)
    )
    for name, data in splits.items():
        wanted = text_columns if is_test(name) else [*text_columns, args.label_column_name]
        if missing := [column for column in wanted if column not in data.column_names]:
            flag = "label_column_name" if missing[0] == args.label_column_name else "text_column_names"
            other = f"{suggestion(missing[0], data.column_names)}; --{flag} chooses another" * (not args.task_name)
            columns = ", ".join(data.column_names)
            stop(f"the {name} data has no column {missing[0]!r}; its columns are {columns}{other}")
        if len(data) == 0:
            stop(f"the {name} data has no rows")
        data = data.select_columns(wanted)
        if args.label_column_name in wanted and args.label_column_name != "label":
            data = data.rename_column(args.label_column_name, "label")
        for column in text_columns:
            if data.features[column] != Value("string"):
                data = cast(data, column, "string", name)
            texts = data.with_format("arrow")[column][:]
            full = pc.sum(pc.greater(pc.utf8_length(texts), 0)).as_py() or 0
            if full < len(data) and not args.task_name:
                say(f"warning: {len(data) - full} of {len(data)} rows of the {name} data have an empty {column}")
        splits[name] = data
    labelled = {name: data for name, data in splits.items() if not is_test(name)}
    for name, data in labelled.items():
        kind = getattr(data.features["label"], "dtype", "list")
        if not kind.startswith(("string", "large_string", "int", "uint", "float", "bool")):
            stop(f"the labels of the {name} data are of type {kind}; take words, numbers, or true and false")
        if {None, ""} & set(data.unique("label")):
            row = next(row for row, label in enumerate(data["label"][:]) if label in (None, ""))
            stop(f"row {row + 1} of the {name} data has no label")
    if labelled and not args.task_name:
        if len({str(data.features["label"]) for data in labelled.values()}) > 1:
            labelled = {name: name_labels(data) for name, data in labelled.items()}
        labelled = type_labels(labelled, args)
    task = find_task(labelled, text_columns, args)
    if labelled.keys() == {"train"}:
        labelled |= hold_out(labelled["train"], args.seed)
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    splits = labelled | {name: data for name, data in splits.items() if is_test(name)}
    for name, data in splits.items():
        limit = limits["test" if is_test(name) else name.split("_")[0]]
        splits[name] = data.select(range(min(limit or len(data), len(data))))
    if "train" in splits and task.values and len(splits["train"].unique("label")) < 2:
        say("warning: the rows that --max_train_samples leaves are of one class: the file is sorted; mix its rows")
    return splits, task


def is_test(name: str) -> bool:
    """Whether a split is one whose labels nobody reads."""
    return name.startswith("test") or name == "ax"


def read_splits(args: argparse.Namespace) -> dict[str, Dataset]:
    if args.train_file or args.validation_file or args.test_file:
        named = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        columns = [*args.text_column_names, args.label_column_name] if args.text_column_names else []
        return {name: read_files(files, columns) for name, files in named.items() if files}
    source = args.dataset_name or "nyu-mll/glue"
    splits = dict(read(source, source, *([args.task_name] if args.task_name else [])))
    if args.task_name == "mnli" and args.do_predict:
        splits["ax"] = read(source, source, "ax", split="test")
    if args.task_name == "ax":
        return {"ax": splits["test"]}
    wanted = ["train", "validation", "validation_matched", "validation_mismatched"]
    splits = {name: data for name, data in splits.items() if name in wanted or (args.do_predict and is_test(name))}
    if "train" not in splits:
        stop(f"--dataset_name {source} has no split `train`; --train_file and --validation_file take its files")
    if args.do_predict and not any(is_test(name) for name in splits):
        stop(f"--do_predict: {source} has no split `test`")
    return splits


def read(source: str, *args: str, **options: Any) -> DatasetDict | Dataset:
    """`load_dataset(*args, **options)`, which names `source` where it cannot be read."""
    try:
        return load_dataset(*args, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        stop(f"{source} could not be read: {error.__cause__ or error}")


def read_files(files: list[str], columns: list[str]) -> Dataset:
    """The rows of all files, one after the other; with several files, only `columns` of them, if those are known."""
    parts = [read_file(file) for file in files]
    if columns and len(files) > 1:
        parts = [part.select_columns([name for name in part.column_names if name in columns]) for part in parts]
    for file, part in zip(files, parts, strict=True):
        if part.features != parts[0].features:  # such as whole numbers in one and fractions in the other
            hint = "" if columns else "; --text_column_names says which are needed"
            stop(f"{file} has the columns {part.features}, but {files[0]} has {parts[0].features}{hint}")
    return concatenate_datasets(parts)


def read_file(file: str) -> Dataset:
    """One file; it is parsed once, with every cell of a .csv or .tsv as text, and kept in datasets' cache."""
    path = Path(file)
    if path.suffix.lower() == ".parquet":
        return read(file, "parquet", data_files=glob.escape(file), split="train")
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "run_glue_no_trainer"
    parse = parse_json if path.suffix.lower() in (".json", ".jsonl") else parse_csv
    # the parser is in the name, or nobody would see what becomes of an edit of it
    cached = cache / f"{checksum(path)}-{datasets.fingerprint.Hasher.hash(parse)}{path.suffix.lower()}.arrow"
    if not cached.exists():
        try:
            table = parse(file)
        except UnicodeError as error:
            stop(f"{file} is not UTF-8: {error}; save it as UTF-8")
        except (ValueError, RecursionError) as error:  # of JSON
            stop(f"{file}: {error}")
        if not table.num_rows:
            stop(f"{file} has no rows")
        aside = cached.with_suffix(f".{os.getpid()}")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with pa.ipc.new_stream(str(aside), table.schema) as writer:
                writer.write_table(table, max_chunksize=1000)
            aside.replace(cached)
        except OSError as error:
            no_cache(error)
    return Dataset.from_file(str(cached))


def no_cache(error: OSError) -> NoReturn:
    stop(f"the cache of datasets cannot be written: {error}; HF_HOME names a folder for it")


def parse_csv(file: str) -> pa.Table:
    """The cells of a comma- or tab-separated file, as text: NA, 007 and 1e5 stay what they are."""
    separator = "\t" if file.lower().endswith(".tsv") else ","
    csv.field_size_limit(2**31 - 1)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            if header and not header[0]:
                header[0] = "Unnamed: 0"  # as pandas calls the index that it writes so
            if len(header) == 1 and (other := re.search(r"[;\t|]", header[0])):
                stop(
                    f"{file} has its columns separated by {other[0]!r}: save it with commas, or as .tsv with tabs "
                    f"(its first line is {header[0]!r})"
                )
            if twice := [name for name in header if header.count(name) > 1 or not name]:
                what = f"two columns {twice[0]!r}" if twice[0] else "a column without a name"
                stop(f"{file}: the header has {what}")
            columns: list[list[str]] = [[] for _ in header]
            for row in filter(None, reader):  # an empty line is no row
                if len(row) != len(header):
                    stop(
                        f"{file}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)} "
                        f"({', '.join(header)}); put cells that hold a separator in double quotes"
                    )
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell)
        except csv.Error as error:
            stop(f"{file}, line {reader.line_num}: {error}; a double quote inside a quoted cell is written twice")
    return pa.table(columns, header)


def parse_json(file: str) -> pa.Table:
    """The values of JSON lines, of a list of objects, or of one under `data`; null where missing."""
    text, place, rows = Path(file).read_text(encoding="utf-8-sig").rstrip(), 0, []
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")
    while place < len(text):
        row, place = decoder.raw_decode(text, space.match(text, place).end())
        rows.append(row)
    if len(rows) == 1:
        inner = rows[0].get("data") if isinstance(rows[0], dict) else rows[0]
        rows = inner if isinstance(inner, list) else rows
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        stop(f'{file}, row {wrong[0]} is not an object such as {{"text": "...", "label": "..."}}')
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: to_arrow([row.get(name) for row in rows]) for name in names})


def to_arrow(values: list) -> pa.Array:
    """Booleans, whole numbers and numbers where all values are such; everything else as text."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds in ({bool}, {str}) or (kinds and kinds <= {int, float}):
        with contextlib.suppress(pa.ArrowInvalid, OverflowError):  # a whole number that is too large
            return pa.array(values)
    return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())


def cast(data: Dataset, column: str, kind: str, name: str) -> Dataset:
    try:
        return data.cast_column(column, Value(kind))
    except (TypeError, ValueError, pa.ArrowInvalid, NotImplementedError):
        stop(f"the {name} data: column {column} holds {data.features[column]}, which is not {kind}")


def find_text_columns(columns: list[str], label: str = "label") -> list[str]:
    if {"sentence1", "sentence2"} <= {*columns} - {label}:
        return ["sentence1", "sentence2"]
    numbered = ("id", "idx", "index", "__index_level_0__", "unnamed: 0")  # the last two are pandas'
    others = [name for name in columns if name.lower() not in numbered and name != label]
    others = [name for name in others if not name.startswith(f"{label}_")]  # label_text would give the answer away
    if not others:
        stop(f"the data has no column of text beside {label!r}; --text_column_names names one")
    if len(others) > 2:
        say(f"warning: of the columns {', '.join(others)} the first two are read; --text_column_names names others")
    return others[:2]


def name_labels(data: Dataset) -> Dataset:
    """A ClassLabel's numbers, which mean something in their own split only, as the words that they stand for."""
    if not isinstance(feature := data.features["label"], ClassLabel):
        return data
    words = dict(enumerate(feature.names))
    return data.remove_columns("label").add_column(
        "label", [words.get(label, str(label)) for label in data["label"][:]]
    )


def type_labels(splits: dict[str, Dataset], args: argparse.Namespace) -> dict[str, Dataset]:
    """Labels in .csv and .tsv that are written as numbers are numbers: whole ones classes, others for regression.

    True and false, in files that know them, become words.
    """
    first = next(iter(splits.values()))
    kind = first.features["label"].dtype
    file = (args.train_file or args.validation_file or [""])[0].lower()
    if kind == "string" and file.endswith((".csv", ".tsv")):
        written = first.unique("label")
        fits = [n for n, form in NUMBERS.items() if all(re.fullmatch(form, x.strip(), re.ASCII) for x in written)]
        kind = fits[0] if fits else kind
    if kind == "bool" or kind in ("large_string", "string_view"):
        kind = "string"
    for name, data in splits.items():
        if kind in NUMBERS and data.features["label"].dtype == "string":
            labels = data["label"][:]
            for row, label in enumerate(labels):
                if not re.fullmatch(NUMBERS[kind], label.strip(), re.ASCII):
                    kinds = "whole numbers" if kind == "int64" else "numbers"
                    stop(f"row {row + 1} of the {name} data has the label {label!r}; the training labels are {kinds}")
            splits[name] = data.remove_columns("label").add_column("label", np.array(labels, object).astype(kind))
        elif data.features["label"].dtype != kind:
            splits[name] = cast(data, "label", kind, name)
    return splits


def hold_out(data: Dataset, seed: int) -> dict[str, Dataset]:
    """`train` and `validation`: every tenth row after sorting by label, so that each class, or size, has its share."""
    rows = np.random.default_rng(seed).permutation(len(data))
    labels = np.array(data["label"][:])
    rows = rows[np.argsort(labels[rows], kind="stable")]
    names, counts = np.unique(labels, return_counts=True)
    alone = set(names[counts == 1]) if labels.dtype.kind != "f" else set()
    held = [row for row in rows[min(4, len(rows) - 1) :: 10] if labels[row] not in alone]
    if not held or len(held) == len(data):
        stop(f"{len(data)} rows are too few to hold some out for validation: give a --validation_file")
    say(f"no validation data is given: {len(held)} rows of {len(data)} are held out, stratified by label")
    rest = sorted(set(range(len(data))) - set(held))
    return {"train": data.select(rest), "validation": data.select(sorted(held))}


def find_task(splits: dict[str, Dataset], text_columns: list[str], args: argparse.Namespace) -> Task:
    """The classes, or that there are none, from the training data; where there is none, from the model."""
    train, values = splits.get("train"), None
    if args.task_name == "ax":
        values, labels = [0, 1, 2], ["entailment", "neutral", "contradiction"]
    elif train is None:
        config = from_pretrained(AutoConfig, args)
        if config.num_labels > 1:  # with one it answers with a number
            labels = [str(config.id2label[index]) for index in range(config.num_labels)]
            values = match_labels(labels, splits.get("validation"))
    elif isinstance(feature := train.features["label"], ClassLabel):
        values, labels = list(range(len(feature.names))), list(feature.names)
    elif not feature.dtype.startswith("float"):
        values = sorted(train.unique("label"))
        labels = [str(value) for value in values]
        if len(values) < 2:
            stop(f"the training data has only one class, {labels[0]!r}: there is nothing to tell apart")
        warn_of_labels(Counter(map(str, train["label"][:])))
    for name, data in splits.items():
        found = set(data.unique("label"))  # numbers up to 1e18: their squares fit float32
        known = set(values) if values else {x for x in found if not isinstance(x, str) and abs(x) <= 1e18}
        if unknown := found - known:
            row = next(row for row, label in enumerate(data["label"][:]) if label in unknown or label != label)
            why = "is not a number to learn (from -1e18 to 1e18)" if values is None else "was never trained"
            stop(f"row {row + 1} of the {name} data has the label {data[row]['label']!r}, which {why}")
    if values is None:
        mean = float(np.mean(numbers(train, "label"))) if train else 0.0
        return Task(METRICS[args.task_name or "regression"], text_columns, None, None, mean=mean)
    own = "two classes" if len(values) == 2 else "classes"
    metrics = METRICS.get(args.task_name or own, ["accuracy"])
    return Task(metrics, text_columns, values, labels, list(labels))


def warn_of_labels(counts: Counter[str]) -> None:
    """Say what in a column of classes has often been a mistake; `counts` are the rows of each."""
    if twice := [name for name, times in Counter(label.lower().strip() for label in counts).items() if times > 1]:
        say(f"warning: some labels differ only in capitals or spaces, such as those of {twice[0]!r}")
    if all(re.fullmatch(r"-?\d+,\d+", label) for label in counts):
        say("warning: the labels look like numbers; with a decimal point, as in 1.5, they are numbers to predict")
    elif len(counts) > 8 and all(re.fullmatch(r"-?\d+", label) for label in counts):
        say("warning: whole numbers are classes; with a decimal point, as in 4.0, they are numbers to predict")
    if rare := sorted(label for label in counts if counts[label] < 10):
        some = ", ".join(rare[:5]) + f" and {len(rare) - 5} more" * (len(rare) > 5)
        say(f"warning: fewer than ten rows of the training data have the label {some}")


def match_labels(labels: list[str], data: Dataset | None) -> list[Any]:
    """What the data calls the classes of a model: their names in any case, or their numbers."""
    written = data.unique("label") if data else []
    if all(isinstance(label, int) for label in written) and written:
        known = {name: int(name) for name in labels if re.fullmatch(r"-?\d+", name)}
        known |= {name.lower(): number for number, name in enumerate(getattr(data.features["label"], "names", []))}
        return [known.get(name.lower(), index) for index, name in enumerate(labels)]
    spelled = {str(label).lower(): label for label in written}
    return [spelled.get(name.lower(), name) for name in labels]


def tokenize(
    data: Dataset, task: Task, tokenizer: Tokenizer, args: argparse.Namespace, name: str
) -> tuple[Dataset, np.ndarray]:
    """The model's inputs with their `labels` (class ids, or floats), and every row's full length in tokens, [rows].

    All that `encode` reads makes the name of its cache.
    """
    ids = {value: index for index, value in enumerate(task.values)} if task.values else None
    columns = task.text_columns
    # what the collator adds, and the types of a tokenizer that has none but 0, need not be made and kept
    typed = any(tokenizer(*["a"] * len(columns)).get("token_type_ids", []))
    options = {"max_length": args.max_length, "return_attention_mask": False, "return_token_type_ids": typed}

    def encode(rows: dict[str, list]) -> dict[str, list]:
        texts = [[text or "" for text in rows[column]] for column in columns]
        batch = dict(tokenizer(*texts, truncation=True, **options))
        # an empty text is still a row where a tokenizer adds no tokens of its own
        batch["input_ids"] = [row or [tokenizer.pad_token_id] for row in batch["input_ids"]]
        if "label" in rows:
            batch["labels"] = [float(label) if ids is None else ids[label] for label in rows["label"]]
        batch["length"] = [len(row) for row in batch["input_ids"]]
        if at_limit := [row for row, length in enumerate(batch["length"]) if length >= options["max_length"]]:
            uncut = tokenizer(*[[text[row] for row in at_limit] for text in texts], verbose=False)["input_ids"]
            for row, tokens in zip(at_limit, uncut, strict=True):
                batch["length"][row] = len(tokens)
        return batch

    workers = args.preprocessing_num_workers or min(os.cpu_count() or 1, 8, 1 + len(data) // 100_000)
    how = {"remove_columns": data.column_names, "num_proc": workers if workers > 1 else None}
    try:
        data = data.map(encode, batched=True, desc=f"Tokenizing {name}", **how)
    except OSError as error:
        no_cache(error)
    return data.remove_columns("length"), numbers(data, "length")


def numbers(data: Dataset, column: str) -> np.ndarray:
    return data.with_format("numpy")[column][:]  # without [:], each row would be read on its own


def fingerprint(data: Dataset) -> str:
    """16 hexadecimal digits that change with any token or label of any row, and with the order of the rows."""
    digest = xxhash.xxh3_64()
    for table in data.with_format("arrow").iter(batch_size=10_000):
        tokens = table["input_ids"].combine_chunks()
        for values in (tokens.value_lengths(), tokens.flatten(), table["labels"]):
            digest.update(values.to_numpy().tobytes())
    return digest.hexdigest()


def describe(data: dict[str, Dataset], lengths: dict[str, np.ndarray], task: Task, max_length: int) -> str:
    """A table of what will be trained on: rows, tokens, how many texts are cut, and the shares of the classes."""
    width = max(map(len, data)) + 2
    lines = [f"{'':{width}}{'rows':>9}{'tokens: median':>18}{'95 %':>7}{'max':>8}{'cut':>8}"]
    classes = []
    for name, dataset in data.items():
        labels = numbers(dataset, "labels") if "labels" in dataset.column_names else None
        if labels is None:
            shares = ["to be predicted"]
        elif task.labels is None:
            shares = [f"{labels.min():.3g} to {labels.max():.3g}", f"mean {labels.mean():.3g}"]
        else:
            counts = np.bincount(labels, minlength=len(task.labels))
            largest = np.argsort(-counts, kind="stable")[:5]
            shares = [f"{task.labels[i]} {counts[i] / len(labels):.1%}" for i in largest]
            shares += [f"and {len(counts) - 5} more"] * (len(counts) > 5)
        classes.append(fit([f"{name:{width}}{shares[0]}", *shares[1:]], 80, width))
        tokens = lengths[name]
        middle, high = np.percentile(tokens, [50, 95])
        cut = int((tokens > max_length).sum())
        lines.append(f"{name:{width}}{len(tokens):>9,}{middle:>18.0f}{high:>7.0f}{tokens.max():>8,}{cut:>8,}")
    text = f"text: {' + '.join(task.text_columns)}, cut at {max_length} tokens; labels:"
    return "\n".join([*lines, text, *classes])


def fit(parts: Sequence[str], columns: int, indent: int) -> str:
    """The parts with commas between them, in lines of so many columns that break between two of them."""
    whole = ", ".join(part.replace(" ", "\0") for part in parts)
    return textwrap.fill(whole, columns, subsequent_indent=" " * indent, break_long_words=False).replace("\0", " ")


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
    lengths: np.ndarray | None  # in tokens, as cut, [rows]; None: do not bring rows of like length together
    epoch: int = 0
    first: int = 0  # global batch of the epoch
    drop_last: ClassVar[bool] = False  # read by Accelerate
    window: ClassVar[int] = 50  # global batches among which rows of like length are brought together

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(max(self.rows, 1) / self.global_batch)

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


def from_pretrained(kind: Any, args: argparse.Namespace, **options: Any) -> Any:
    """What an Auto class, `kind`, makes of --model_name_or_path."""
    name, revision, trust = args.model_name_or_path, args.model_revision, args.trust_remote_code
    try:
        return kind.from_pretrained(name, revision=revision, trust_remote_code=trust, **options)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        stop(
            f"--model_name_or_path {name} has a head of another size than the {options['config'].num_labels} labels "
            "of the data; --ignore_mismatched_sizes starts a new head"
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if any(Path(name).glob("pytorch_model*.bin")):
            convert = f"AutoModelForSequenceClassification.from_pretrained('{name}').save_pretrained('{name}-safe')"
            stop(
                f"--model_name_or_path {name} has its weights in a pickle, which could run code; if you trust it: "
                f'python -c "from transformers import *; {convert}"'
            )
        stop(f"--model_name_or_path {name}: {error}")


def load_model(args: argparse.Namespace, task: Task) -> tuple[Model, Tokenizer]:
    """The model with a head for the task, in float32, and its tokenizer. A model's own order of classes is kept."""
    if args.trust_remote_code:
        say(f"warning: --trust_remote_code runs whatever Python code comes with {args.model_name_or_path}")
    config = from_pretrained(AutoConfig, args)
    if task.labels:
        keep_model_labels(config, task)
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: index for index, label in enumerate(task.labels)}
    else:
        config.num_labels = 1
    config.problem_type = "single_label_classification" if task.labels else "regression"
    tokenizer = from_pretrained(AutoTokenizer, args, use_fast=not args.use_slow_tokenizer)
    if args.use_slow_tokenizer and tokenizer.is_fast:
        say("warning: --use_slow_tokenizer changes nothing: this model has a fast tokenizer only")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            stop(f"--model_name_or_path {args.model_name_or_path}: its tokenizer has no token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    device = PartialState().device
    model, loaded = from_pretrained(
        AutoModelForSequenceClassification,
        args,
        output_loading_info=True,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        # on the CPU, dropout inside SDPA costs more than the attention matrix it saves; on XLA its mask is read
        # by the host in each step
        attn_implementation=args.attn_implementation or ("eager" if device.type in ("cpu", "xla") else None),
        use_safetensors=True,  # a pickle could run code
    )
    if loaded["missing_keys"] and args.num_train_epochs == 0 and not args.max_train_steps:
        say(f"warning: {args.model_name_or_path} has no trained head: what it answers is drawn at random")
    if device.type == "cpu":
        tune_cpu()
    for name, parameter in model.named_parameters():
        if task.labels is None and name in loaded["missing_keys"] and parameter.shape == (1,):
            torch.nn.init.constant_(parameter, task.mean)  # the bias of a new head: no steps are spent on the offset
    return model, tokenizer


def tune_cpu() -> None:
    """Make a step on a CPU up to twice as fast; the figure of each line is in benchmarks/README.md."""
    F.dropout = dropout
    # oneDNN keeps what it has built for each shape of a product: let these be some more than one step has
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    if "AuthenticAMD" in cpu and "amx_" not in cpu:
        # MKL multiplies without AMD's AVX-512, on Zen 5 at half its speed. So oneDNN shall: it may take bf16 for it,
        # which it does with Intel's matrix units (AMX) alone; without them the products are those of fp32
        torch.set_float32_matmul_precision("medium")
    if platform.libc_ver()[0] == "glibc":  # malloc shall keep what a step frees for the next one
        malloc = ctypes.CDLL(None)
        malloc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back
        malloc.mallopt(-4, 0)  # M_MMAP_MAX: nor ask for a large block on its own, to give it back when it is freed


def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.dropout` at a third of its time on the CPU: four 16-bit random numbers at a draw, not one.

    `p` is rounded to 1/65536. The numbers come from torch's default generator, as they do there.
    """
    if not training or p == 0:
        return x
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 65536) - 32768
    return x * keep.to(x.dtype).mul_(1 / (1 - p) if p < 1 else 0.0)


def fit_length(max_length: int, model: Model, tokenizer: Tokenizer) -> int:
    """--max_length, or what the model has positions for if that is less."""
    limits = [tokenizer.model_max_length]
    if (positions := getattr(model.config, "max_position_embeddings", None) or 0) > 0:
        padding = [m.padding_idx for n, m in model.named_modules() if n.endswith("position_embeddings")]
        # RoBERTa and its kin count positions from the one after the padding's
        limits.append(positions - (padding[0] + 1 if padding and padding[0] is not None else 0))
    if max_length > min(limits):
        say(f"warning: --max_length {max_length} is more than the model can read; it is lowered to {min(limits)}")
    return min(max_length, *limits)


def keep_model_labels(config: transformers.PretrainedConfig, task: Task) -> None:
    """Put the task's classes into the order that the model was trained with, if it knows them by name."""
    known = {str(label).lower(): index for index, label in config.id2label.items()}
    if sorted(known) == sorted(label.lower() for label in task.labels):
        order = sorted(range(len(task.labels)), key=lambda index: known[task.labels[index].lower()])
        task.values, task.words = ([of[index] for index in order] for of in (task.values, task.words or task.labels))
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
    recent: list[list[float]] = field(default_factory=list)  # since the last line of the log: rate, mean loss, norm
    loss_total: float = 0.0  # of all global batches up to the last line of the log
    loss_count: int = 0
    lr_scheduler: dict[str, Any] = field(default_factory=dict)  # its state
    processes: int = 1
    begun: float = field(default_factory=time.perf_counter)  # on this process's clock
    seconds: float = 0.0
    results: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    best: dict[str, float] = field(default_factory=dict)  # of the best one
    waited: int = 0  # evaluations since
    settings: dict[str, Any] = field(default_factory=dict)  # what a resumed run must not change
    run: str = field(default_factory=lambda: os.urandom(4).hex())  # its name for trackers, which a resumed run keeps
    mark: tuple[int, float] = (0, 0.0)  # the step and the time that speed is counted from

    def position(self, sampler: GlobalBatchSampler) -> dict[str, float]:
        return {"step": self.step, "epoch": self.epoch + self.batch / sampler.steps_per_epoch}

    def take_recent(self) -> dict[str, float]:
        """A line of the log: the mean loss since the last one, and what the latest step had besides."""
        rates, losses, norms = zip(*self.recent, strict=True)
        self.loss_total, self.loss_count = self.loss_total + sum(losses), self.loss_count + len(losses)
        self.recent = []
        return {"loss": sum(losses) / len(losses), "learning_rate": rates[-1], "grad_norm": norms[-1]}

    def rows_per_second(self) -> float:
        """The speed of training since the epoch began or this was last asked."""
        (step, begun), self.mark = self.mark, (self.step, time.perf_counter())
        return (self.step - step) * self.settings["global_batch_size"] / (self.mark[1] - begun)


@dataclass
class Run:
    """What the loop shares with the functions that it calls."""

    args: argparse.Namespace
    accelerator: Accelerator
    task: Task
    tokenizer: Tokenizer
    model: torch.nn.Module  # as prepared: what is trained
    final_model: torch.nn.Module  # what is evaluated and saved
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    eval_loaders: dict[str, DataLoader]  # by split, in length order; of what is to be predicted as well
    lengths: dict[str, np.ndarray]  # of each split's rows, in tokens
    floor: dict[str, float]  # each metric's baseline, on the main process
    table: str  # of the data
    progress: Progress
    stop_signal: "StopSignal"
    unread: list[tuple] = field(default_factory=list)  # steps still on the device: learning rate, loss, gradient norm
    sealing: list[tuple[Future, Path]] = field(default_factory=list)  # the checkpoint that a thread is writing down
    uploads: list[Future] = field(default_factory=list)


def main(args: argparse.Namespace | None = None) -> dict[str, Any]:
    """Fine-tune, evaluate and save; returns what is written to all_results.json."""
    args = args or parse_args(sys.argv[1:])  # `accelerate launch` on a TPU calls `main()` in every process
    accelerator = start_accelerator(args)
    set_seed(args.seed)  # the same new head on every process
    splits, task = one_first(accelerator, lambda: load_data(args))
    model, tokenizer = load_model(args, task)
    args.max_length = fit_length(args.max_length, model, tokenizer)
    tokenized = one_first(
        accelerator, lambda: {name: tokenize(split, task, tokenizer, args, name) for name, split in splits.items()}
    )
    data = {name: split for name, (split, _) in tokenized.items()}
    lengths = {name: tokens for name, (_, tokens) in tokenized.items()}
    table = describe(data, lengths, task, args.max_length)
    say(table)
    train_data = data.get("train", next(iter(data.values())).select([]))  # none, where a model is only to be used
    eval_data = {name: split for name, split in data.items() if name != "train" and not is_test(name)}
    floor = baseline(task, train_data, eval_data) if accelerator.is_main_process else {}
    args.metric_for_best_model = best_metric(args, task)

    global_batch = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    cut_lengths = None if args.no_group_by_length else np.minimum(lengths.get("train", []), args.max_length)
    sampler = GlobalBatchSampler(
        len(train_data), global_batch, args.per_device_train_batch_size, args.seed, cut_lengths
    )
    loading = {
        "collate_fn": collator(tokenizer, args, accelerator),
        "num_workers": args.dataloader_num_workers,
        "pin_memory": accelerator.device.type == "cuda",
        "generator": torch.Generator(),  # or each iteration takes a number from the stream that dropout draws on
    }
    train_loader = accelerator.prepare(DataLoader(train_data, batch_sampler=sampler, **loading))
    eval_loaders = {}  # of what is to be predicted as well
    for name in [name for name in data if name != "train"]:
        in_order = data[name].select(by_length(lengths[name]))
        eval_loaders[name] = accelerator.prepare(
            DataLoader(in_order, batch_size=args.per_device_eval_batch_size, **loading)
        )
    accelerator._dataloaders.clear()  # Progress knows where they are; on XLA Accelerate fails to save their state

    num_epochs, max_steps = args.num_train_epochs, args.num_train_epochs * sampler.steps_per_epoch
    if args.max_train_steps:
        num_epochs, max_steps = math.ceil(args.max_train_steps / sampler.steps_per_epoch), args.max_train_steps
    # the fused kernel would skip a step on its own where the fp16 scaler says so, and Accelerate would not see it
    fused = accelerator.device.type != "xla" and accelerator.scaler is None
    groups = parameter_groups(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, fused=fused)
    warmup_steps = args.num_warmup_steps
    if warmup_steps is None:  # at least one step is to learn something
        warmup_steps = max(0, min(math.ceil(args.warmup_ratio * max_steps), max_steps - 1))
    described = name_model(model)  # before any of its weights live elsewhere
    model, optimizer = accelerator.prepare(model, optimizer)
    final_model = model  # what is evaluated and saved; one that averages the weights would be another
    # after `prepare`, which may bring another optimizer, and not prepared: it would move once for every process
    planned = max(max_steps, warmup_steps + 1)  # a polynomial divides by the steps after the warm-up
    lr_scheduler = transformers.get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, planned)

    set_seed(args.seed, device_specific=True)  # dropout differs from one process to the next
    fixed = {name: getattr(args, name) for name in ("seed", "weight_decay", "max_grad_norm", "no_group_by_length")} | {
        "global_batch_size": global_batch,
        "schedule": name_schedule(args, warmup_steps, max_steps),
        "data": fingerprint(train_data),
        "validation_data": " ".join(map(fingerprint, eval_data.values())),
        "model": described,
    }
    progress = open_run(args, accelerator, model, lr_scheduler, fixed)
    run = Run(
        args=args,
        accelerator=accelerator,
        task=task,
        tokenizer=tokenizer,
        model=model,
        final_model=final_model,
        lr_scheduler=lr_scheduler,
        eval_loaders=eval_loaders,
        lengths=lengths,
        floor=floor,
        table=table,
        progress=progress,
        stop_signal=StopSignal(accelerator),
    )
    checkpoint_steps = int(args.checkpointing_steps) if args.checkpointing_steps not in (None, "epoch") else 0
    if max_steps:
        say(f"training for {max_steps} steps of {global_batch} rows, on {hardware(accelerator)}")
    bar = progress_bar("Training", total=max_steps, initial=progress.step)

    while progress.epoch < num_epochs or progress.step < (args.max_train_steps or 0):
        if progress.waited >= (args.early_stopping_patience or math.inf):
            say(f"early stopping: {args.metric_for_best_model} was not better in {progress.waited} evaluations")
            break
        model.train()
        sampler.start(progress.epoch, progress.batch)
        progress.mark = (progress.step, time.perf_counter())
        mean_loss = 0.0
        for batch in train_loader:
            if progress.step == max_steps:
                break
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                mean_loss += loss.detach() / args.gradient_accumulation_steps
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue  # the global batch is not complete

            run.unread.append((lr_scheduler.get_last_lr()[0], mean_loss, grad_norm))
            mean_loss, progress.batch = 0.0, progress.batch + 1
            if accelerator.optimizer_step_was_skipped:
                continue  # by the fp16 loss scaler: neither the schedule nor the count moves
            lr_scheduler.step()
            progress.step += 1
            bar.update()

            if progress.step % args.logging_steps == 0 or progress.step == max_steps:
                read_losses(run)
                line, speed = progress.position(sampler) | progress.take_recent(), progress.rows_per_second()
                show(bar, line, speed)
                log(run, line, speed)
            if checkpoint_steps and progress.step % checkpoint_steps == 0:
                save_checkpoint(run, f"step_{progress.step}")
            if run.stop_signal():
                leave(run)

        read_losses(run)  # one that is not finite is told by its step
        progress.results = evaluate_model(run) | progress.position(sampler)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        log(run, progress.results)
        say(scores(progress.results, floor))
        note_best(run)
        if args.checkpointing_steps == "epoch":
            save_checkpoint(run, f"epoch_{progress.epoch - 1}")
        if args.push_to_hub:
            share_model(run, f"Training in progress, epoch {progress.epoch}")

    bar.close()
    if progress.results.get("step") != progress.step:  # --num_train_epochs 0, or a resume with nothing left to do
        progress.results = evaluate_model(run) | progress.position(sampler)
    run.stop_signal.restore()
    settle(run)
    if args.load_best_model_at_end and progress.best:
        load_best(run)
    results = share_model(run, "End of training", last=True)
    if args.do_predict:
        write_predictions(run)
    return finish(run, results)


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """The devices, the precision and the processes, as the launcher or the flags say."""
    if args.with_tracking:
        known, installed = LoggerType.list(), [str(tracker) for tracker in get_available_trackers()]
        if args.report_to not in known:
            stop(f"--report_to {args.report_to}: takes one of {', '.join(known)}{suggestion(args.report_to, known)}")
        if args.report_to not in ("all", *installed) or not installed:
            missing = "tensorboard" if args.report_to == "all" else args.report_to
            stop(f"--report_to {args.report_to}: not installed; pip install {missing} brings it")
    # several processes on a machine without an accelerator are one run only if Accelerate is told that it is a CPU run
    no_accelerator = not (torch.accelerator.is_available() or accelerate.utils.is_torch_xla_available())
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"  # says `accelerate launch`
    try:
        PartialState(cpu=no_accelerator)
        accelerator = Accelerator(
            # the plug-in, for DeepSpeed's configuration would win over the number
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.gradient_accumulation_steps),
            mixed_precision=args.mixed_precision,
            cpu=no_accelerator and not deepspeed,  # which Accelerate would not start in a CPU run
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            # DDP would sort its buckets anew after the first step, also the first after a resume: other rounding
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=no_accelerator)],
            log_with=args.report_to if args.with_tracking else None,
            project_dir=args.output_dir,
        )
    except (ValueError, ImportError) as error:  # a precision that this machine has not
        one_machine = "; on one machine that is 127.0.0.1" if "MASTER_ADDR" in str(error) else ""  # mpirun alone
        stop(f"{error}{one_machine}")
    if torch.distributed.is_initialized():
        # kept to the end: were DDP's the last hold on it, letting it go would wait for gloo's threads, while they may
        # wait for Python, which that holds up (https://github.com/pytorch/pytorch/issues/56297)
        accelerator.state.process_group = torch.distributed.group.WORLD
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 in the matrix products that are not in mixed precision
    if deepspeed:  # it accumulates and clips itself
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "gradient_clipping": args.max_grad_norm,
        }
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        stop("--mixed_precision fp16 needs a GPU; on a CPU take bf16 or no")
    for name in LAUNCHERS:
        if (started := int(os.environ.get(name) or 1)) > accelerator.num_processes:
            stop(
                f"{name} says that {started} processes were started, but each of them would train alone. To make one "
                f"run of them: `accelerate launch --multi_gpu --num_processes {started}` or `torchrun "
                f"--nproc_per_node {started}`, on CPUs with ACCELERATE_USE_CPU=true; for {started} runs: unset {name}"
            )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    if not (accelerator.is_main_process and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    return accelerator


def all_or_none(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Let every process `work`; if one of them stops, having said why, all stop."""
    code, result = 0, None
    try:
        result = work()
    except SystemExit as stopped:
        code = stopped.code
    if code := int(accelerator.gather(torch.tensor([code], device=accelerator.device)).max()):
        sys.exit(code)
    return result


def one_first(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Let one process of each machine `work`, and then the others, who find what it has put into the cache."""
    first = accelerator.is_local_main_process
    result = all_or_none(accelerator, lambda: work() if first else None)
    return result if first else work()


def say(text: str) -> None:
    """Print above the progress bar, once for all processes."""
    if PartialState().is_main_process:
        try:
            tqdm.write(text)
        except BrokenPipeError:  # nobody reads on: `| head` has enough, or Ctrl-C has ended `| tee` as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress_bar(what: str, **options: Any) -> tqdm:
    """A bar for people: at a terminal, of one process; `options` are tqdm's."""
    disable = None if PartialState().is_main_process else True  # None: where there is no terminal
    return tqdm(desc=what, dynamic_ncols=True, disable=disable, **options)


def show(bar: tqdm, line: dict[str, float], speed: float) -> None:
    """The latest loss and learning rate: beside the bar, or where there is none, as in a log file, on a line."""
    loss, rate = f"{line['loss']:.4f}", f"{line['learning_rate']:.2e}"
    bar.set_postfix(loss=loss, lr=rate)  # of a bar that is not shown, nothing
    if bar.disable:
        say(f"step {line['step']} of {bar.total}: loss {loss}, learning rate {rate}, {speed:.0f} rows a second")


def by_length(lengths: np.ndarray) -> np.ndarray:
    """Row numbers, longest row first: little padding, and too little memory shows at once."""
    return np.argsort(-lengths, kind="stable")


def collator(tokenizer: Tokenizer, args: argparse.Namespace, accelerator: Accelerator) -> Callable:
    """Pads a batch to its longest row, or to a length that makes few shapes where each new shape is compiled."""
    if args.pad_to_max_length or accelerator.device.type == "xla":
        return DataCollatorWithPadding(tokenizer, padding="max_length", max_length=args.max_length)
    multiple = 16 if accelerator.mixed_precision == "fp8" else 8  # what tensor cores want; a CPU has fewer shapes then
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        multiple = 32
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)


def read_losses(run: Run) -> None:
    """Bring the losses of the latest steps from the device: the one place where the loop waits for it.

    Raises:
        SystemExit: 1, where a loss or a gradient is not finite.
    """
    if not run.unread:
        return
    progress = run.progress
    rates, losses, norms = zip(*run.unread, strict=True)
    losses = run.accelerator.reduce(torch.stack(losses), "mean").tolist()
    norms = torch.stack([torch.as_tensor(norm) for norm in norms]).tolist()
    for index, (rate, loss, norm) in enumerate(zip(rates, losses, norms, strict=True)):
        scaled = run.accelerator.scaler is not None  # in fp16 infinite gradients are the scaler's to deal with
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
            before = f"; the step before had loss {progress.recent[-1][1]:.4g}" if progress.recent else ""
            stop(
                f"step {progress.step - len(losses) + index + 1}: the loss is {loss:.4g} and the gradient norm "
                f"{norm:.4g}, at learning rate {rate:.4g}{before}. The usual causes: a --learning_rate too high for "
                "this model (try a tenth), too short a warm-up (--warmup_ratio 0.2), fp16 (try --mixed_precision "
                "bf16), or weights that were broken before.",
                code=1,
            )
        progress.recent.append([rate, loss, norm])
    run.unread.clear()


class StopSignal:
    """SIGTERM and SIGINT, noted when they come, so that the step in hand is finished; a second SIGINT ends at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.received, self.since = 0, 0.0
        several = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        self.group = torch.distributed.new_group(backend="gloo") if several else None
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
            # `accelerate launch` of one process hands no signal on: let its end be one (PR_SET_PDEATHSIG)
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)

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
        """From here on a signal ends the process at once."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.received = 0


# --- Evaluation


def predict(run: Run, split: str, what: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits, float32 [rows, classes], and labels, [rows], of every row once, in the order of the file, on the CPU.

    The labels are None where the data has none. After a signal to stop the run ends.
    """
    model = run.final_model
    before = model.training
    model.eval()
    parts = []
    for batch in progress_bar(what, iterable=run.eval_loaders[split], leave=False):
        if run.stop_signal():
            leave(run)
        labels = batch.pop("labels", None)
        with torch.no_grad():  # inference mode is not for XLA
            logits = model(**batch).logits.float()
        rows = (logits,) if labels is None else (logits, labels)
        parts.append(run.accelerator.gather_for_metrics(rows))
    model.train(before)
    place = torch.from_numpy(np.argsort(by_length(run.lengths[split])))
    logits, *labels = (torch.cat(column).cpu()[place] for column in zip(*parts, strict=True))
    return logits, labels[0] if labels else None


def evaluate_model(run: Run) -> dict[str, float]:
    """`eval_loss` and `eval_<metric>` of each validation split, known to every process; MNLI's second ends in _mm."""
    results: dict[str, float] = {}
    for split in [name for name in run.eval_loaders if not is_test(name)]:
        logits, labels = predict(run, split, "Evaluating")
        if run.accelerator.is_main_process:
            values = judge(run.task, logits, labels)
            results |= {f"eval_{metric}{suffix(split)}": value for metric, value in values.items()}
    results = broadcast_object_list([results])[0]
    if not all(math.isfinite(value) for value in results.values()):
        stop(f"the evaluation gave {results}: the weights are broken.", code=1)
    return results


def judge(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The task's metrics and the loss of logits, [rows, classes], against labels, [rows]."""
    if task.labels is None:
        predictions, loss = logits.squeeze(-1), F.mse_loss(logits.squeeze(-1), labels)
    else:
        predictions, loss = logits.argmax(-1), F.cross_entropy(logits, labels)
    return compute_metrics(task, predictions.numpy(), labels.numpy()) | {"loss": loss.item()}


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Each class's, [rows, classes]."""
    return logits.softmax(-1)


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
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features, format="numpy")

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
    floor = {}
    for name, split in eval_data.items():
        references = numbers(split, "labels")
        known = numbers(train_data, "labels") if len(train_data) else references
        answer = known.mean() if task.labels is None else np.bincount(known).argmax()
        values = compute_metrics(task, np.full(len(references), answer), references)
        floor |= {f"baseline_{metric}{suffix(name)}": value for metric, value in values.items()}
    return floor


def best_metric(args: argparse.Namespace, task: Task) -> str:
    """The metric, without `eval_`, that tells the best model."""
    names = ["loss", *task.metrics] + [f"{name}_mm" for name in ("loss", *task.metrics) if args.task_name == "mnli"]
    name = (args.metric_for_best_model or task.metrics[0]).removeprefix("eval_")
    if name not in names:
        stop(f"--metric_for_best_model {name}: there are {', '.join(names)}")
    return name


def note_best(run: Run) -> None:
    """Note whether the latest evaluation is the best so far; if so, keep its weights for --load_best_model_at_end."""
    progress, metric = run.progress, run.args.metric_for_best_model
    sign = -1 if metric.startswith(("loss", "mse")) else 1
    score, best = progress.results[f"eval_{metric}"], progress.best.get(f"eval_{metric}", -sign * math.inf)
    if sign * score <= sign * best:
        progress.waited += 1
        return
    progress.best, progress.waited = progress.results, 0
    if run.args.load_best_model_at_end:
        weights, aside = whole_weights(run), Path(run.args.output_dir) / ".best.partial"
        once = {weight.data_ptr(): name for name, weight in weights.items()}  # tied weights have several names
        weights = {name: weights[name] for name in once.values()}
        together(run.accelerator, lambda: run.accelerator.save(weights, aside, safe_serialization=True), aside)
        if run.accelerator.is_main_process:
            aside.replace(Path(run.args.output_dir) / BEST)


def whole_weights(run: Run) -> dict[str, torch.Tensor]:
    """The weights by their names in the bare model; where each process has a share of them, only the first has all."""
    weights = run.accelerator.get_state_dict(run.final_model) or {}
    if run.accelerator.device.type == "xla":
        weights = {name: weight.cpu() for name, weight in weights.items()}
    return {name.replace("_orig_mod.", ""): weight for name, weight in weights.items()}  # torch.compile's addition


def load_best(run: Run) -> None:
    best, metric = run.progress.best, run.args.metric_for_best_model
    say(f"the best model is that of step {best['step']}: {metric} {best[f'eval_{metric}']:.4f}")
    run.accelerator.wait_for_everyone()
    weights = load_file(Path(run.args.output_dir) / BEST)
    bare = run.accelerator.unwrap_model(run.final_model, keep_torch_compile=False)
    whole = contextlib.nullcontext()
    if hasattr(next(bare.parameters()), "ds_id"):  # DeepSpeed's ZeRO-3: each process has a share of each weight
        import deepspeed  # Accelerate's own GatheredParameters does nothing unless the model was also made in shares

        whole = deepspeed.zero.GatheredParameters(list(bare.parameters()), modifier_rank=0)
    with whole:  # not strict: tied weights are saved once
        set_model_state_dict(bare, weights, options=StateDictOptions(full_state_dict=True, strict=False))


def write_predictions(run: Run) -> None:
    """predict_results.csv: label and probabilities of every row; for GLUE the files that its server takes."""
    args, task, folder = run.args, run.task, Path(run.args.output_dir)
    for name in filter(is_test, run.eval_loaders):
        logits, _ = predict(run, name, "Predicting")
        if not run.accelerator.is_main_process:
            continue
        shares, chosen = probabilities(logits), logits.argmax(-1).tolist()
        if not args.task_name:
            file, header = folder / f"predict_results{name.removeprefix('test')}.csv", ["label"]
            rows = [[value] for value in logits[:, 0].tolist()]
            if task.labels:
                header += ["probability", *(f"probability_{label}" for label in task.labels)]
                rows = [[task.labels[k], row[k], *row] for k, row in zip(chosen, shares.tolist(), strict=True)]
        else:
            split = {"test_mismatched": "mnli_mm", "ax": "ax"}.get(name, args.task_name)
            file, header = folder / "glue" / f"{TEST_FILES[split]}.tsv", ["index", "prediction"]
            if task.labels is None:
                rows = [[index, f"{min(max(value, 0), 5):.3f}"] for index, value in enumerate(logits[:, 0].tolist())]
            else:
                answers = task.words if split in IN_WORDS else task.values
                rows = [[index, answers[k]] for index, k in enumerate(chosen)]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "w", encoding="utf-8", newline="") as out:
                writer = csv.writer(out, delimiter="\t" if args.task_name else ",", lineterminator="\n")
                writer.writerows([header, *rows])
        except OSError as error:
            stop(f"the predictions could not be written, the model is saved: {error}.", code=1)
        say(f"{len(rows)} predictions are in {file}")
    files = [folder / "glue" / f"{name}.tsv" for name in TEST_FILES.values()]
    if run.accelerator.is_main_process and all(file.exists() for file in files):
        with zipfile.ZipFile(folder / "glue" / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)


def scores(results: dict[str, float], floor: dict[str, float]) -> str:
    """One line: where the run is, and each score beside the one that needs no model."""
    words = []
    for key, value in results.items():
        if key.startswith("eval_"):
            name, least = key.removeprefix("eval_"), floor.get(key.replace("eval_", "baseline_"))
            words.append(f"{name} {value:.4f}" + (f" (baseline {least:.4f})" if least is not None else ""))
    words[:1] = [f"epoch {results['epoch']:g}, step {results['step']}: {''.join(words[:1])}"]
    # in a file it stays one line
    return fit(words, shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000, 4)


# --- Results


def name_schedule(args: argparse.Namespace, warmup_steps: int, max_steps: int) -> str:
    """All that decides the learning rate at a step; a constant one may go on for longer than was planned."""
    warmup = "" if args.lr_scheduler_type == "constant" else f", {warmup_steps} warm-up steps"
    end = "" if args.lr_scheduler_type.startswith("constant") else f" of {max_steps}"
    return f"{args.lr_scheduler_type} from {args.learning_rate:g}{warmup}{end}"


def name_model(model: Model) -> str:
    """What a checkpoint has to fit: architecture, size and configuration, wherever the model was loaded from."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    number = xxhash.xxh32_hexdigest(json.dumps(config, sort_keys=True, default=str).encode())
    return f"{type(model).__name__} of {model.num_parameters():,} parameters, configuration {number}"


def open_run(
    args: argparse.Namespace, accelerator: Accelerator, model: torch.nn.Module, lr_scheduler: Any, settings: dict
) -> Progress:
    """Make or clear --output_dir, start the trackers, and go to where --resume_from_checkpoint left off."""
    progress = Progress(settings=settings)
    if not args.output_dir:
        return progress
    if args.push_to_hub:
        all_or_none(accelerator, lambda: make_repository(args) if accelerator.is_main_process else None)
    folder, checkpoint = Path(args.output_dir), None
    if args.resume_from_checkpoint:
        found = all_or_none(accelerator, lambda: find_checkpoint(args) if accelerator.is_main_process else None)
        checkpoint = broadcast_object_list([found and str(found)])[0]  # as text: XLA sends nothing else
        say(f"going on from {checkpoint}" if checkpoint else f"{folder} has no checkpoint yet: this is a first start")
    if checkpoint:
        checkpoint = Path(checkpoint)
        progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
        for name, value in settings.items():
            if (was := progress.settings.get(name)) != value:
                stop(
                    f"--resume_from_checkpoint {checkpoint}: {name} was {was} there and is {value} here; "
                    "take the same, or start a new run in another --output_dir"
                )
        if args.load_best_model_at_end and not (checkpoint / BEST).exists():  # the run did not keep it before
            progress.best = {}
        accelerator.load_state(checkpoint)
        accelerator.step = 0  # counts device batches; a checkpoint is always between two global batches
        lr_scheduler.load_state_dict(progress.lr_scheduler)
        if progress.processes != accelerator.num_processes:  # their random numbers cannot go on where they were
            set_seed(args.seed + progress.step, device_specific=True)
    progress.begun = time.perf_counter() - progress.seconds
    together(accelerator, lambda: folder.mkdir(parents=True, exist_ok=True), folder)
    if accelerator.is_main_process:
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        needed, free = weights * (4 if args.checkpointing_steps else 1), shutil.disk_usage(folder).free
        if free < needed:
            stop(f"--output_dir {folder}: this run needs {needed / 1e6:,.1f} MB there, {free / 1e6:,.1f} MB are free")
        for left in folder.glob(".*_*.*"):
            if re.fullmatch(r"\.(step|epoch)_\d+\.(partial|old)", left.name):  # of a run that was killed
                shutil.rmtree(left)
        if checkpoint:
            shutil.copy(checkpoint / "log.jsonl", folder / "log.jsonl")  # forget what came after the checkpoint
            if (checkpoint / BEST).exists():
                shutil.copy(checkpoint / BEST, folder / BEST)
        elif (folder / "log.jsonl").exists():  # of the run that this one replaces
            names = (
                "log.jsonl",
                "all_results.json",
                BEST,
                "glue_no_trainer",
                "predict_results.csv",
                "training_curve.png",
            )
            files = [folder / name for name in names]
            for old in [*checkpoints(folder), *files]:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    if args.with_tracking:
        start_trackers(accelerator, args, progress, resumed=bool(checkpoint))
    return progress


def start_trackers(accelerator: Accelerator, args: argparse.Namespace, progress: Progress, resumed: bool) -> None:
    """Open the trackers with the flags, but for secrets; after a resume they go on with the curves that they have."""
    folder = Path(args.output_dir) / "glue_no_trainer"
    same = {"name": f"{Path(args.output_dir).name}-{progress.run}", "resume": "allow"}
    options = {"wandb": same | {"id": progress.run, "dir": str(folder)}, "trackio": same}
    if resumed:  # forget what came after the checkpoint
        options["tensorboard"] = {"purge_step": progress.step}
    sys.argv[:] = without_token(sys.argv)  # Weights & Biases writes it down
    shown = {flag: v for flag, v in vars(args).items() if isinstance(v, (str, int, float)) and "token" not in flag}
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
    try:
        accelerator.init_trackers("glue_no_trainer", None if resumed else shown, options)
    except Exception as error:  # each tracker has its own
        why = f"{type(error).__name__}: {error}; another tracker: --report_to tensorboard"
        stop(f"--report_to {args.report_to}: {why}")
    if resumed and "tensorboard" in map(str, accelerator.log_with):  # the lines of the checkpoint's own step went too
        lines = (Path(args.output_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        for line in filter(lambda line: line["step"] == progress.step, map(json.loads, lines)):
            accelerator.get_tracker("tensorboard").log(line, step=line.pop("step"))


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
        sums = dict(json.loads((checkpoint / "checksums.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return "checksums.json is missing or cannot be read"
    if missing := sorted(sums.keys() - files_in(checkpoint).keys()):
        return f"it has no {missing[0]}"
    wrong = (name for name, was in sums.items() if checksum(checkpoint / name) != was)
    return next((f"{name} is not as it was written" for name in wrong), "")


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
    said = torch.tensor([list((failure or "").encode()[:1000].ljust(1000))], device=accelerator.device)
    failures = [bytes(row).decode(errors="ignore").strip() for row in accelerator.gather(said).tolist()]
    if failures := [text for text in failures if text]:
        if target.name.endswith(".partial"):
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
        stop(f"{target} could not be written: {failures[0]}.", code=1)


def log(run: Run, line: dict[str, float], speed: float | None = None) -> None:
    """One line for log.jsonl and the trackers; of the speed, which no two runs share, only the trackers are told."""
    if run.args.output_dir and run.accelerator.is_main_process:
        file = Path(run.args.output_dir) / "log.jsonl"
        try:
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        except OSError as error:
            stop(f"{file} could not be written: {error}.", code=1)
    if run.args.with_tracking:
        extra = {"samples_per_second": speed} if speed else {}
        run.accelerator.log({name: value for name, value in line.items() if name != "step"} | extra, step=line["step"])


def save_checkpoint(run: Run, name: str) -> None:
    """Save all that decides what comes next; a thread seals it, so that it is whole before it has its name."""
    accelerator, progress, folder = run.accelerator, run.progress, Path(run.args.output_dir)
    settle(run)
    read_losses(run)
    shares = [getattr(weight, "ds_tensor", weight).detach() for weight in run.model.parameters()]  # ZeRO-3's, or whole
    norm = torch.nn.utils.get_total_norm(shares)
    if not accelerator.reduce(norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite():
        stop(f"step {progress.step}: the weights are not finite; try a lower --learning_rate.", code=1)
    progress.lr_scheduler, progress.processes = run.lr_scheduler.state_dict(), accelerator.num_processes
    progress.seconds = time.perf_counter() - progress.begun
    aside = folder / f".{name}.partial"

    def write() -> None:
        accelerator.save_state(aside)
        if accelerator.is_main_process:
            (aside / "progress.json").write_text(json.dumps(asdict(progress), indent=2), encoding="utf-8")
            (folder / "log.jsonl").touch()
            for file in filter(Path.exists, (folder / "log.jsonl", folder / BEST)):
                shutil.copy(file, aside / file.name)

    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    together(accelerator, write, aside)
    # of several processes the others have nothing to seal
    rest = (seal, folder, name, run.args.save_total_limit) if accelerator.is_main_process else (int,)
    run.sealing.append((ThreadPoolExecutor(1).submit(*rest), aside))


def seal(folder: Path, name: str, limit: int | None) -> None:
    """Flush `.<name>.partial` in `folder` to the disk with its files' checksums, give it its name, drop the oldest."""
    aside, old = folder / f".{name}.partial", folder / f".{name}.old"
    sums = {file: checksum(path) for file, path in files_in(aside).items()}
    (aside / "checksums.json").write_text(json.dumps(sums, indent=2), encoding="utf-8")
    for path in [*aside.rglob("*"), aside]:
        to_disk(path)
    if (folder / name).exists():
        (folder / name).rename(old)
    aside.rename(folder / name)
    to_disk(folder)
    shutil.rmtree(old, ignore_errors=True)
    if limit:
        found = checkpoints(folder)  # those after this one are of steps that are taken again
        for path in found[: found.index(folder / name) + 1][:-limit]:
            shutil.rmtree(path.rename(folder / f".{path.name}.old"))


def settle(run: Run) -> None:
    """Wait for the checkpoint that is being sealed, if there is one."""
    while run.sealing:
        future, aside = run.sealing.pop()
        together(run.accelerator, future.result, aside)


def leave(run: Run) -> NoReturn:
    """After a signal: save a checkpoint, say how to go on from it, and end with the signal's exit code."""
    number, name = run.stop_signal(), f"step_{run.progress.step}"
    said = signal.Signals(number).name
    if run.args.output_dir and run.progress.step:
        save_checkpoint(run, name)
        settle(run)
        say(f"{said}: saved {Path(run.args.output_dir) / name}; to go on:\n{resume_command()}")
    else:
        why = "; nothing is saved without an --output_dir" * (not run.args.output_dir)
        say(f"{said}: stopped after step {run.progress.step}{why}")
    for known in run.stop_signal.before:  # the launcher repeats it as soon as one of us has left
        signal.signal(known, signal.SIG_IGN)
    run.accelerator.end_training()
    sys.exit(128 + number)


def without_token(words: list[str]) -> list[str]:
    """A command line with TOKEN in the place of --hub_token's value."""
    words = [re.sub(r"^(--hub_token=).*", r"\1TOKEN", word) for word in words]
    return ["TOKEN" if before == "--hub_token" else word for before, word in zip(["", *words], words, strict=False)]


def launch_command() -> str:
    """The command line that started this run, without secrets: the launcher's if there is one."""
    this, own = psutil.Process(), without_token(sys.argv)
    lines, flags = [], own[1:]
    with contextlib.suppress(psutil.Error, AttributeError):  # the parent may be another user's, or gone
        lines.append(without_token(this.cmdline()))
        lines.insert(0, without_token(this.parent().cmdline()))
    command = next((line for line in lines if flags and line[-len(flags) :] == flags), [sys.executable, *own])
    return re.sub(r"(--hub_token[ =])TOKEN", r"\1$HF_TOKEN", shlex.join(command))


def resume_command() -> str:
    gone = r" --(resume_from_checkpoint[ =]('[^']*'|\S+)|overwrite_output_dir([ =](true|false))?)"
    return re.sub(gone, "", launch_command(), flags=re.IGNORECASE) + " --resume_from_checkpoint latest"


def all_results(run: Run, last: bool) -> dict[str, Any]:
    """What is known about the run: scores (at the `last` those of the best model), baselines, times, settings."""
    args, progress = run.args, run.progress
    results: dict[str, Any] = progress.results | run.floor
    if progress.best:
        if args.load_best_model_at_end and last:
            results |= {name: value for name, value in progress.best.items() if name.startswith("eval_")}
        results |= {f"best_{name}": progress.best[name] for name in ("step", "epoch")}
        results[f"best_{args.metric_for_best_model}"] = progress.best[f"eval_{args.metric_for_best_model}"]
    if progress.step:
        rows, seconds = progress.step * progress.settings["global_batch_size"], time.perf_counter() - progress.begun
        losses = [loss for _, loss, _ in progress.recent]  # since the last line of the log
        results["train_loss"] = (progress.loss_total + sum(losses)) / max(progress.loss_count + len(losses), 1)
        results |= {"train_runtime": round(seconds, 2), "train_samples_per_second": round(rows / seconds, 2)}
    versions = {m.__name__: m.__version__ for m in (torch, transformers, accelerate, datasets, evaluate)}
    return results | progress.settings | {"versions": versions}


def keep_model(run: Run, last: bool) -> dict[str, Any]:
    """Save what was trained and its card, and at the `last` all_results.json, in --output_dir; returns the results."""
    results, folder, main_process = (
        all_results(run, last),
        Path(run.args.output_dir or ""),
        run.accelerator.is_main_process,
    )
    weights = whole_weights(run)

    def write() -> None:
        if main_process and run.progress.step:  # else the model is where it was
            bare = run.accelerator.unwrap_model(run.final_model, keep_torch_compile=False)
            bare.save_pretrained(folder, state_dict=weights)
            run.tokenizer.save_pretrained(folder)
            log_lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
            draw_curve(folder / "training_curve.png", log_lines, run.task.metrics[0], run.floor)
            write_card(run, results, log_lines)
        if main_process and last:
            text = json.dumps(results, indent=2, ensure_ascii=False)
            (folder / "all_results.json").write_text(text + "\n", encoding="utf-8")

    if run.args.output_dir:
        together(run.accelerator, write, folder / "model.safetensors")
        if main_process and last:
            (folder / BEST).unlink(missing_ok=True)  # it is the model now
    return results


def draw_curve(file: Path, lines: list[dict[str, float]], metric: str, floor: dict[str, float]) -> None:
    """The losses and the task's metric by optimizer step, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:  # it is not there, or was built for another NumPy
        return
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for axis, name in ((losses, "loss"), (losses, "eval_loss"), (scores, f"eval_{metric}")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axis.plot(*np.transpose(points), marker=".", label=name)
        axis.set_xlabel("step")
    if (least := floor.get(f"baseline_{metric}")) is not None:
        scores.axhline(least, linestyle=":", color="gray", label="baseline")
    losses.legend()
    scores.legend()
    figure.savefig(file)


def write_card(run: Run, results: dict[str, Any], lines: list[dict[str, float]]) -> None:
    """README.md in --output_dir: what the model is, its scores, how to use it, how it was made.

    Its metadata are those of https://huggingface.co/docs/hub/model-cards.
    """
    args, task, folder, base = run.args, run.task, Path(run.args.output_dir), run.args.model_name_or_path
    name = (args.hub_model_id or folder.absolute().name).split("/")[-1]
    on_hub = not Path(base).exists()
    dataset = args.dataset_name if not Path(args.dataset_name or "").exists() else None
    dataset = "nyu-mll/glue" if args.task_name else dataset
    files = [Path(file).name for file in args.train_file or []]
    data = f"GLUE {args.task_name}" if args.task_name else dataset or " ".join(files or [Path(args.dataset_name).name])
    scores = {key.removeprefix("eval_"): value for key, value in results.items() if key.startswith("eval_")}
    hub_names = {"pearson": "pearsonr", "macro_f1": "f1"}
    measured = [
        EvalResult(
            task_type="text-classification",
            dataset_type=dataset or "own-data",
            dataset_name=data,
            dataset_config=args.task_name,
            dataset_split="validation_mismatched" if metric.endswith("_mm") else "validation",
            metric_type=hub_names.get(metric.removesuffix("_mm"), metric.removesuffix("_mm")),
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in scores.items()
        if "loss" not in metric
    ]
    metadata = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=base if on_hub else None,
        datasets=[dataset] if dataset else None,
        metrics=sorted({hub_names.get(metric, metric) for metric in task.metrics}),
        tags=["text-classification", "accelerate"],
        eval_results=measured or None,
    )
    evaluations, loss = [], None
    for line in lines:
        loss = line.get("loss", loss)
        if "eval_loss" in line:
            evaluations.append({"epoch": line["epoch"], "step": line["step"], "training loss": loss} | line)
    known = ("seed", "global_batch_size", "schedule", "weight_decay", "max_grad_norm", "train_runtime")
    settings = {name: results.get(name) for name in known} | {
        "max_length": args.max_length,
        "optimizer": "AdamW, betas 0.9 and 0.999, epsilon 1e-8",
        "mixed precision": run.accelerator.mixed_precision,
        "run on": hardware(run.accelerator),
        "versions": ", ".join(f"{module} {version}" for module, version in results["versions"].items()),
    }
    curve = "![Loss and score by step](training_curve.png)" if (folder / "training_curve.png").exists() else ""
    home = re.escape(os.path.expanduser("~"))  # which a card that is published need not tell
    command = re.sub(rf"{home}(?=/)", "~", launch_command())
    first, second = "The parcel came a day early.", "The parcel was late."
    origin = f"[{base}](https://huggingface.co/{base})" if on_hub else Path(base).name
    floor = "the commonest class" if task.labels else "the mean"
    question = first if len(task.text_columns) == 1 else {"text": first, "text_pair": second}
    card = f"""---
{metadata.to_yaml()}
---

# {name}

{origin} fine-tuned on {data}: {" + ".join(task.text_columns)} → {", ".join(task.labels or ["a number"])}.

## Results

On the validation data. The baseline always answers {floor} of the training data.

{markdown_table([{"metric": k, "score": v, "baseline": results.get(f"baseline_{k}")} for k, v in scores.items()])}

## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", {json.dumps(args.hub_model_id or args.output_dir)})
print(classify({json.dumps(question)}))
```

## Training

{curve}

{markdown_table(evaluations)}

```
{run.table}
```

```sh
{command}
```

{markdown_table([{"setting": name, "value": value} for name, value in settings.items()])}
"""
    ModelCard(card).save(folder / "README.md")


def markdown_table(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    header = [[*rows[0]], ["---"] * len(rows[0])] if rows else []
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in [*header, *(row.values() for row in rows)])


def hardware(accelerator: Accelerator) -> str:
    device = f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name()
    elif accelerator.device.type != "cpu":
        device = accelerator.device.type
    return f"{accelerator.num_processes} × {device}"


def summary(args: argparse.Namespace, results: dict[str, Any], task: Task) -> str:
    """What a person wants to know at the end: scores beside the baseline, time, where everything is, what next."""
    lines = []
    scores = {key.removeprefix("eval_"): value for key, value in results.items() if key.startswith("eval_")}
    if scores:
        lines.append(f"{'':24}{'score':>10}{'baseline':>10}")
    for metric, value in scores.items():
        least = results.get(f"baseline_{metric}")
        lines.append(f"{metric:24}{value:>10.4f}" + (f"{least:>10.4f}" if least is not None else ""))
    if "train_runtime" in results:
        minutes, seconds = divmod(round(results["train_runtime"]), 60)
        rate = results["train_samples_per_second"]
        steps = f"{results['step']} step" + "s" * (results["step"] != 1)
        lines.append(f"{steps} in {minutes} min {seconds} s, {rate:g} rows a second, evaluations included")
    if not args.output_dir:
        return "\n".join([*lines, "nothing is saved without an --output_dir"])
    there = "model and " * bool(results["step"]) + "results" + ", checkpoints" * bool(args.checkpointing_steps)
    lines += [f"{there + ', predictions' * args.do_predict} are in {args.output_dir}"]
    if not results["step"]:
        return "\n".join(lines)
    if not (Path(args.output_dir) / "training_curve.png").exists():
        lines.append("no training_curve.png: pip install matplotlib brings one next time")
    lines.append("next:")
    ask = "'...'" if len(task.text_columns) == 1 else "{'text': '...', 'text_pair': '...'}"
    ask = f"pipeline('text-classification', '{args.output_dir}')({ask})"
    lines.append(f'  python -c "from transformers import pipeline; print({ask})"')
    script, folder, name = map(shlex.quote, (sys.argv[0], args.output_dir, Path(args.output_dir).absolute().name))
    if not args.do_predict:
        rows = ["--text_column_names", ",".join(task.text_columns), "--test_file", "new.csv"]
        if args.task_name:
            rows = ["--task_name", args.task_name, *(["--dataset_name", args.dataset_name] * bool(args.dataset_name))]
        rows += ["--max_length", str(args.max_length)] * (args.max_length != 128)
        lines.append(
            f"  python {script} --model_name_or_path {folder} --num_train_epochs 0 "
            f"--do_predict {shlex.join(rows)} --output_dir {folder}/predictions"
        )
    if not args.push_to_hub:
        lines.append(f'  hf upload {name} {folder} . --exclude "*/*"')
    return "\n".join(lines)


def share_model(run: Run, message: str, last: bool = False) -> dict[str, Any]:
    """Save the model, at the `last` the results too, which it returns; with --push_to_hub upload it in a thread."""
    finish_upload(run)  # it reads the files that are about to be written
    results, args = keep_model(run, last), run.args
    if args.push_to_hub and run.accelerator.is_main_process:
        options = {"repo_id": args.hub_model_id, "folder_path": args.output_dir, "token": args.hub_token}
        options |= {"allow_patterns": SHARED, "ignore_patterns": [*NOT_SHARED], "commit_message": message}
        run.uploads.append(ThreadPoolExecutor(1).submit(huggingface_hub.upload_folder, **options))
    return results


def finish(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Sum the run up and close what it has open; returns the results."""
    finish_upload(run)
    say(summary(run.args, results, run.task))
    run.accelerator.end_training()
    return results


def finish_upload(run: Run) -> None:
    """Wait for an upload that is under way; the run does not depend on whether it succeeds."""
    name, folder = run.args.hub_model_id, run.args.output_dir
    while run.uploads:
        if (error := run.uploads.pop().exception()) is not None:
            patterns = [("--include", shared) for shared in SHARED] + [("--exclude", kept) for kept in NOT_SHARED]
            again = shlex.join(["hf", "upload", name, folder, ".", *sum(patterns, ())])
            why = str(error.__cause__ or error).partition("\n")[0]
            say(f"warning: the upload to {name} failed: {why}\nthe model is in {folder}; to upload it: {again}")


def make_repository(args: argparse.Namespace) -> None:
    """What --push_to_hub uploads to; made before training, so that a wrong token or name shows at once."""
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.get_session().timeout = HUB_TIMEOUT
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    private = args.hub_private_repo or None  # None: as the account has it
    try:
        made = huggingface_hub.create_repo(name, token=args.hub_token, private=private, exist_ok=True)
    except (huggingface_hub.errors.HTTPError, OSError, ValueError) as error:
        stop(f"--push_to_hub: {name} could not be made: {error}")
    args.hub_model_id = made.repo_id


if __name__ == "__main__":
    main(ARGS)
