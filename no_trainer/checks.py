"""Checks of flags that are well-formed, made before the imports, which take seconds."""

import argparse
import errno
import glob
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from no_trainer.commands import names_in
from no_trainer.folder import BEST, WRITTEN, checkpoints, is_free, is_of
from no_trainer.glue import GLUE
from no_trainer.messages import stop

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
IN_USE = "--output_dir {folder}: another run is writing there; wait until it ends, or name another folder"
MEMORY = "glue_no_trainer"  # entry of config.json: the text columns, label column and max_length of the training
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
NEEDS_FOLDER = (
    "checkpointing_steps", "save_total_limit", "with_tracking", "resume_from_checkpoint", "do_predict",
    "load_best_model_at_end", "push_to_hub",
)  # fmt: skip


def trains(args: argparse.Namespace) -> bool:
    """Whether the run trains, and not only evaluates or predicts."""
    return bool(args.num_train_epochs)


def check_interpreter() -> None:
    """Check what the imports would fail at."""
    if sys.flags.optimize > 1:
        stop("python -OO removes the docstrings that transformers needs; use python or python -O")
    level = os.environ.get("ACCELERATE_LOG_LEVEL", "info")
    if not isinstance(logging.getLevelName(level.upper()), int):
        stop(f"ACCELERATE_LOG_LEVEL in the environment is {level!r}; it is debug, info, warning, error or critical")


def check_arguments(args: argparse.Namespace, argv: Sequence[str]) -> argparse.Namespace:
    """The flags, with globs and lists of columns resolved, after all checks.

    Raises:
        SystemExit: 2, after one line that names the flag and what would be right.
    """
    args = argparse.Namespace(**vars(args))
    for flag, value in vars(args).items():
        for word in value if isinstance(value, list) else [value]:
            check_word(flag, word)
    if not args.model_name_or_path:
        stop("--model_name_or_path is needed: a hub id such as bert-base-cased or a model's folder")
    for flag in ("model_name_or_path", "tokenizer_name", "dataset_name"):
        if max(map(len, os.fsencode(getattr(args, flag) or "").split(b"/"))) > 255:
            stop(f"--{flag} {getattr(args, flag)}: the name is too long for a file or a repository")
    for flag in ("model_name_or_path", "tokenizer_name"):
        if name := getattr(args, flag):
            if re.match(r"[./~]", name) and not os.path.isdir(name):
                stop(f"--{flag} {name}: there is no such folder")
            check_model_folder(flag, Path(name))
    for flag in ("--config", "--train_file", "--validation_file", "--test_file", "--text_column_names"):
        if sum(word.partition("=")[0] == flag for word in argv) > 1:
            stop(f"{flag} is given twice" + "; it takes several values, one after the other" * (flag != "--config"))
    if args.max_train_steps and not args.num_train_epochs:
        stop("--num_train_epochs 0 trains nothing, and --max_train_steps trains: leave one of them out")
    files = {flag: names for flag, names in vars(args).items() if flag.endswith("_file") and names}
    training = trains(args)
    source = next((f"--{flag}" for flag in ("task_name", "dataset_name") if getattr(args, flag)), None)
    if source and files:
        stop(f"{source} and --{next(iter(files))} cannot be given together: give one of them")
    if not source and "train_file" not in files and (training or not files):
        hint = "; to evaluate or predict only, add --num_train_epochs 0" * bool(files)
        stop(f"what to train on? Give --task_name ({', '.join(GLUE)}), --dataset_name or --train_file{hint}")
    if args.dataset_config_name and (args.task_name or not args.dataset_name):
        stop("--dataset_config_name needs a --dataset_name; a --task_name is its own configuration")
    if args.task_name == "ax" and (training or not args.do_predict):
        stop("--task_name ax is a test set: give --num_train_epochs 0 --do_predict and a model of mnli")
    own_columns = args.text_column_names or args.label_column_name
    if args.task_name and (own_columns or args.do_regression):
        flags = "--text_column_names, --label_column_name and --do_regression"
        stop(f"{flags} are for your own data: a GLUE task has its own columns")
    for flag, names in files.items():
        found: dict[str, str] = {}  # by their real names
        for file in (file for name in names for file in find_files(flag, name)):
            if other := found.get(real := os.path.realpath(file)):
                stop(f"--{flag}: {file} is given twice" + f", the first time as {other}" * (other != file))
            found[real] = file
        setattr(args, flag, list(found.values()))
    if args.do_predict and not (source or args.test_file):
        stop("--do_predict needs a --test_file")
    if args.test_file and not args.do_predict:
        stop("--test_file needs --do_predict: add it")
    if args.text_column_names:
        columns = names_in(",".join(args.text_column_names))
        if len(set(columns) - {""}) != len(columns):
            stop(f"--text_column_names {','.join(columns)}: takes columns as in a,b, each once")
        if args.label_column_name and "label" in columns:
            stop("--text_column_names: rename the column 'label': --label_column_name names another one of labels")
        if (label := args.label_column_name or "label") in columns:
            stop(f"--text_column_names: {label} is the column of the labels")
        args.text_column_names = columns
    steps = args.checkpointing_steps
    if steps not in (None, "epoch") and not re.fullmatch(r"[1-9]\d*", steps):
        stop(f"--checkpointing_steps {steps}: takes a number of steps, or epoch")
    warm_up = args.num_warmup_steps or args.warmup_ratio not in (0, 0.1)
    if args.lr_scheduler_type == "constant" and training and warm_up:
        stop("--lr_scheduler_type constant has no warm-up; constant_with_warmup has one")
    if args.lr_scheduler_type == "polynomial" and training and args.learning_rate <= 1e-7:
        stop(f"--learning_rate {args.learning_rate:g}: the polynomial schedule needs more than 1e-7")
    saving = [f"--{flag}" for flag in NEEDS_FOLDER if getattr(args, flag)]
    if saving and not args.output_dir:
        stop(f"{saving[0]} needs an --output_dir")
    check_hub(args)
    if args.output_dir:
        check_output_dir(Path(args.output_dir), args)
    return args


def check_model_folder(flag: str, folder: Path) -> None:
    """Check what takes no time to see in the files of a local model."""
    if not os.path.isdir(folder):  # a name on the hub
        return
    if pipes := [path for path in folder.glob("*") if path.is_fifo()]:
        stop(f"--{flag} {folder}: {pipes[0].name} in it is a pipe, not a file")
    for name in ("config.json", *TOKENIZER_FILES):
        if (folder / name).is_file():
            with open(folder / name, encoding="utf-8-sig", errors="replace") as text:
                if text.read(1000).lstrip()[:1] != "{":
                    stop(f"--{flag} {folder}: {name} in it is not a JSON object, {{...}}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # transformers will say what is wrong
        return
    names, memory = config.get("id2label"), config.get(MEMORY)
    numbered = isinstance(names, dict) and set(names) == set(map(str, range(len(names))))
    if names is not None and not numbered:
        stop(f'--{flag} {folder}: id2label in config.json must have the keys "0", "1", ... without gaps')
    if memory is not None and not remembers(memory):
        stop(f"--{flag} {folder}: {MEMORY} in config.json is not what this script writes; remove it")
    for name in ("hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        if isinstance(config.get(name), int) and config[name] < 1:
            stop(f"--{flag} {folder}: {name} in config.json is {config[name]}; it must be positive")


def remembers(memory: Any) -> bool:
    """Whether the entry is like {"text_columns": ["text"], "label_column": "label", "max_length": 128}."""
    if not isinstance(memory, dict):
        return False
    columns = memory.get("text_columns")
    named = isinstance(columns, list) and all(isinstance(column, str) for column in columns)
    label = memory.get("label_column", "label")
    named = named and isinstance(label, str) and len({label, *columns}) == len(columns) + 1
    return named and isinstance(memory.get("max_length"), int) and memory["max_length"] > 0


def check_hub(args: argparse.Namespace) -> None:
    """Check the flags of the hub."""
    given = [f"--{flag}" for flag in ("hub_model_id", "hub_private_repo") if getattr(args, flag)]
    if given and not args.push_to_hub:
        stop(f"{given[0]} is for --push_to_hub, which is not given")
    if args.push_to_hub and not trains(args):
        stop("--push_to_hub uploads the trained model, but this run trains nothing")
    if args.hub_token and not re.fullmatch(r"[!-~]+", args.hub_token):
        stop("--hub_token: a token has only ASCII characters and no spaces")  # the client would show the token


def find_files(flag: str, name: str) -> list[str]:
    """The files that one value of --train_file, --validation_file or --test_file names."""
    is_pattern = glob.has_magic(name) and not os.path.exists(name)
    found = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
    if not found:
        stop(f"--{flag} {name}: no file matches")
    for file in found:
        if os.path.isdir(file):
            stop(f"--{flag} {file} is a folder; for its files, give '{Path(file) / '*.csv'}'")
        if not os.access(file, os.R_OK):
            stop(f"--{flag} {file}: there is no such file, or it cannot be read")
        if not os.path.isfile(file):
            stop(f"--{flag} {file}: is a pipe or a device; save its content as a file first")
        check_word(flag, file)
        if Path(file).suffix.lower() not in SUFFIXES:
            stop(f"--{flag} {file}: the name must end in {', '.join(SUFFIXES)}")
    return found


def check_word(flag: str, word: object) -> None:
    """Check that a value is not empty, as an unset shell variable leaves it, and can be a name."""
    if word == "":
        stop(f"--{flag} is empty: leave it out, or set the variable that it comes from")
    if isinstance(word, str) and re.search("[\0\ud800-\udfff]", word):
        stop(f"--{flag} {word}: the name is not UTF-8, or has a null character in it; rename it")


def check_output_dir(folder: Path, args: argparse.Namespace) -> None:
    """Check that a run may begin or continue in this folder."""
    try:
        if len(folder.parts) > 500:
            stop(f"--output_dir {str(folder)[:50]}...: {len(folder.parts)} folders inside one another are too many")
        if os.path.lexists(folder) and not os.path.exists(folder):
            stop(f"--output_dir {folder} is a broken link; remove it, or name another folder")
        os.lstat(folder)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            stop(f"--output_dir {folder}: {error.strerror}")
    paths = [folder.absolute(), *folder.absolute().parents]
    existing = next(path for path in paths if os.path.exists(path))
    if not existing.is_dir():
        stop(f"--output_dir {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        stop(f"--output_dir {folder}: {existing} cannot be written to")
    if not is_free(folder):
        stop(IN_USE.format(folder=folder))
    resume = args.resume_from_checkpoint
    if resume and resume != "latest" and not os.path.isfile(Path(resume) / "progress.json"):
        stop(f"--resume_from_checkpoint {resume} is not a checkpoint of this script; give step_N, epoch_N or latest")
    check_contents(folder, args)


def check_contents(folder: Path, args: argparse.Namespace) -> None:
    """Check that a run can write to --output_dir without destroying what somebody may need."""
    for name in [*WRITTEN, BEST, "glue_no_trainer", "glue"]:
        path, wanted = folder / name, "folder" if name.startswith("glue") else "file"
        fits = path.is_file() if wanted == "file" else path.is_dir()
        if os.path.lexists(path) and not fits:
            stop(f"--output_dir {folder}: {name} in it is not a {wanted}, but the run writes one")
    training = trains(args)
    both_there = folder.exists() and os.path.isdir(args.model_name_or_path)
    if both_there and os.path.samefile(folder, args.model_name_or_path):
        if training:
            stop(f"--output_dir {folder} is the folder of the model to train; name another folder")
        if args.overwrite_output_dir:
            stop(f"--output_dir {folder} is the folder of the model; leave --overwrite_output_dir out")
    instead = "replace it with --overwrite_output_dir, or name another folder"
    if args.overwrite_output_dir:
        return
    resume = args.resume_from_checkpoint
    # `latest` also starts a first run, so that the same command starts and restarts a job
    if resume == "latest" and (folder / "all_results.json").exists() and not checkpoints(folder):
        stop(f"--output_dir {folder} holds a run that has ended and no checkpoint to go on from; {instead}")
    own = resume and (resume == "latest" or is_of(Path(resume), folder))
    if not own and (folder / "log.jsonl").exists():
        go_on = "continue it with --resume_from_checkpoint latest if it has checkpoints"
        stop(f"--output_dir {folder} holds an earlier run: {go_on}, {instead}")
    strange = [name for name in (*WRITTEN, BEST) if (folder / name).exists()]
    if training and strange and not (folder / "log.jsonl").exists() and not checkpoints(folder):
        hint = f"that is not of a training run of this script; {instead}"
        stop(f"--output_dir {folder} has a {strange[0]} {hint}")
