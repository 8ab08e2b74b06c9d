"""The flags that training does not read, and the parser of all flags and of --config."""

import argparse
import contextlib
import gc
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from no_trainer.checks import check_arguments, check_interpreter, check_word
from no_trainer.commands import without_values
from no_trainer.glue import GLUE
from no_trainer.messages import EARLIER, STARTING, open_streams, stop, suggestion, under_way, watch_imports

MEANT = {  # flags of other scripts, separated by spaces: what to use here
    "lr": "--learning_rate",
    "epochs num_epochs": "--num_train_epochs",
    "batch_size train_batch_size per_device_batch_size per_gpu_train_batch_size": "--per_device_train_batch_size",
    "eval_batch_size per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "max_steps num_train_steps": "--max_train_steps",
    "max_seq_length max_seq_len model_max_length": "--max_length",
    "warmup_steps": "--num_warmup_steps",
    "model model_name": "--model_name_or_path",
    "tokenizer": "--tokenizer_name",
    "dataset": "--dataset_name",
    "dataset_config": "--dataset_config_name",
    "task glue_task": "--task_name",
    "text_column text_columns text_column_name input_column": "--text_column_names",
    "label label_column label_name target_column": "--label_column_name",
    "fp16": "--mixed_precision fp16",
    "bf16": "--mixed_precision bf16",
    "metric metric_name": "--metric_for_best_model",
    "save_steps save_strategy": "--checkpointing_steps",
    "resume": "--resume_from_checkpoint latest",
    "optim": "an edit of the script: AdamW is one line of `main`",
    "run_name": "the name of the folder in --output_dir",
    "predict_file": "--test_file, with --do_predict",
    "validation_split_percentage": "10 % of the rows, if there is no --validation_file",
    "group_by_length": "on unless --no_group_by_length is given",
    "use_fast_tokenizer": "on unless --use_slow_tokenizer is given",
    "do_train": "always on, unless --num_train_epochs is 0",
    "do_eval evaluate": "always on, after each epoch",
    "text_column_delimiter": "not needed: --text_column_names a,b,c joins the columns",
    "eval_strategy evaluation_strategy eval_steps": "after each epoch; or examples/edits/evaluate_every.patch",
    "gradient_checkpointing": "an edit of the script: examples/edits/gradient_checkpointing.patch",
    "label_smoothing_factor label_smoothing": "an edit of the script: examples/edits/label_smoothing.patch",
}


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: an int or float from low to high, both included."""

    def parse(text: str) -> float:
        try:
            if "_" in text or not text.isascii():  # which Python reads as digits and a person may not
                raise ValueError(text)
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"takes {wanted}, not {text!r}") from None
        if not low <= value <= min(high, sys.float_info.max):
            most = f" and at most {high:g}" if high < MOST or value > high else ""
            raise argparse.ArgumentTypeError(f"must be at least {low:g}{most}, not {text}")
        return value

    parse.metavar = "N" if kind is int else "X"  # in --help
    return parse


def true_or_false(text: str) -> bool:
    """An argparse type for a switch that is followed by a word."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"takes true or false, or no value for true, not {text!r}")
    return text.lower() == "true"


YES_OR_NO = {"yes": "true", "on": "true", "no": "false", "off": "false"}
MOST = 10**9  # steps, rows or epochs
POSITIVE, COUNT, AMOUNT = number(int, 1, MOST), number(int, 0, MOST), number(float, 0)
SWITCH: dict[str, Any] = {"nargs": "?", "const": True, "default": False, "metavar": "true"}
SWITCH["type"] = true_or_false


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """--help with each default that is a value, not None or False."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "metavar", action.dest.upper())

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


class Parser(argparse.ArgumentParser):
    """A parser with the flags of data, output and the hub, and errors of one line.

    The script adds the flags that it reads to the groups `model` and `training`.
    """

    def __init__(self, description: str) -> None:
        data = "(--task_name TASK | --train_file FILE)"
        usage = f"%(prog)s --model_name_or_path MODEL {data} [--output_dir DIR] [...]"
        super().__init__(description=description, usage=usage, formatter_class=Help, allow_abbrev=False)
        self._optionals.title = "general"
        self.add_argument("--config", metavar="FILE.yaml", help="flags in YAML; the command line wins")
        add_data_flags(self.add_argument_group("data"))
        self.model = self.add_argument_group("model")
        self.training = self.add_argument_group("training")
        add_model_flags(self.model)
        add_output_flags(self.add_argument_group("output"))

    def error(self, message: str) -> NoReturn:
        if unknown := re.search(r"unrecognized arguments: --([^\s=]+)", message):
            known = [option for option in self._option_string_actions if option.startswith("--")]
            message += instead(unknown[1]) or suggestion(f"--{unknown[1]}", known)
        stop(f"{without_values(message)} (--help lists every flag)")


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for the rows to train on, evaluate on and predict."""
    add = group.add_argument
    files: dict[str, Any] = {"nargs": "+", "metavar": "FILE"}
    name, names = {"metavar": "NAME"}, {"nargs": "+", "metavar": "A[,B]"}
    add("--task_name", choices=[*GLUE, "ax"], help="GLUE task; ax: predictions of a model of mnli")
    add("--dataset_name", **name, help="hub id or folder (default with --task_name: nyu-mll/glue)")
    add("--dataset_config_name", **name, help="a configuration of the data set, if it has several")
    add("--train_file", **files, help="your own files or globs: .csv .tsv .json .jsonl .parquet")
    add("--validation_file", **files, help="same columns (default: 10 %% of the training rows)")
    add("--test_file", **files, help="rows to predict with --do_predict; `label` is not needed")
    add("--do_predict", **SWITCH, help="predict --test_file or the data set's test split")
    add("--text_column_names", **names, help="columns to read (default: the model's, text, or a guess)")
    add("--label_column_name", **name, help="column with the labels (default: the model's, or label)")
    add("--do_regression", **SWITCH, help="predict numbers, although the labels are whole numbers")
    add("--max_train_samples", type=POSITIVE, help="train on the first N rows only")
    add("--max_eval_samples", type=POSITIVE, help="evaluate on the first N rows only")
    add("--max_predict_samples", type=POSITIVE, help="predict the first N rows only")
    add("--preprocessing_num_workers", type=POSITIVE, help="processes that tokenize (default: by the number of rows)")
    add("--dataloader_num_workers", type=COUNT, default=0, help="processes that load batches")


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for loading the model and its tokenizer."""
    add = group.add_argument
    add("--model_revision", default="main", metavar="REV", help="branch, tag or commit on the hub")
    add("--tokenizer_name", metavar="NAME", help="the tokenizer to use (default: the model's)")
    add("--use_slow_tokenizer", **SWITCH, help="use the tokenizer written in Python, if any")
    add("--ignore_mismatched_sizes", **SWITCH, help="start a new head if the number of classes differs")
    add("--attn_implementation", metavar="NAME", help="eager, sdpa ... (default: by the device)")
    add("--trust_remote_code", **SWITCH, help="run code that comes with the model; read it first")


def add_output_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for what a run saves, logs and uploads."""
    add = group.add_argument
    add("--output_dir", metavar="DIR", help="where model, results and checkpoints go; nothing is saved without it")
    add("--overwrite_output_dir", **SWITCH, help="replace the earlier run in that folder")
    add("--checkpointing_steps", metavar="N|epoch", help="save a checkpoint every N steps or every epoch")
    add("--save_total_limit", type=POSITIVE, help="keep the newest N checkpoints")
    add("--resume_from_checkpoint", metavar="DIR|latest", help="continue from this checkpoint")
    add("--logging_steps", type=POSITIVE, default=10, help="steps between log lines")
    add("--with_tracking", **SWITCH, help="log to experiment trackers as well")
    add("--report_to", default="all", metavar="NAME", help="tensorboard, wandb, trackio ...; all: those installed")
    add("--push_to_hub", **SWITCH, help="upload the model and its card after every epoch and at the end")
    add("--hub_model_id", metavar="NAME", help="you/your-model (default: --output_dir's name)")
    add("--hub_token", metavar="TOKEN", help="(default: HF_TOKEN, or the one of `hf auth login`)")
    add("--hub_private_repo", **SWITCH, help="make a new repository private")


def read_arguments(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Read the --config file and the command line, which wins, and check what needs no data.

    Raises:
        SystemExit: 2, after one line that names the flag and what would be right; 0 after --help.
    """
    args = parser.parse_args(argv)
    if args.config is not None:
        flags, warm_up = read_config(args.config, parser), ("--num_warmup_steps", "--warmup_ratio")
        for given, replaced in ((warm_up, warm_up), ("--num_train_epochs", "--max_train_steps")):
            if any(word.startswith(given) for word in argv):
                flags = [flag for flag in flags if not flag.startswith(replaced)]
        args = parser.parse_args([*flags, *argv])
    return argparse.Namespace(**vars(check_arguments(args, argv)), argv=list(argv))  # argv: for printed commands


def before_imports(parse: Callable[[Sequence[str]], argparse.Namespace]) -> argparse.Namespace:
    """Read this process's flags and prepare it for the imports, which take seconds."""
    open_streams()
    check_interpreter()
    with contextlib.suppress(ValueError):  # outside the main thread; until the loop, Ctrl-C ends without a traceback
        EARLIER[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(sys.stdout, "reconfigure"):  # a file's encoding on Windows lacks many characters
        sys.stdout.reconfigure(errors="backslashreplace")
    args = parse(sys.argv[1:])
    # torch's C++ code would warn in each process about find_unused_parameters, which is intended
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    STARTING.enter_context(under_way("importing torch, transformers and datasets"))
    watch_imports()
    gc.disable()  # garbage collection would take a fifth of the time of the imports
    return args


def instead(flag: str) -> str:
    """The end of a message about another script's flag: what to use here, if that is known."""
    meant = next((here for others, here in MEANT.items() if flag in others.split()), None)
    return f"; here: {meant}" if meant else ""


def read_config(file: str, parser: argparse.ArgumentParser) -> list[str]:
    """The words of a command line that means the same as this flat YAML file."""
    import yaml

    check_word("config", file)
    if not os.path.isfile(file):
        wrong = "it is not a file" if os.path.exists(file) else "there is no such file"
        stop(f"--config {file}: {wrong}")
    try:
        top = yaml.compose(Path(file).read_text(encoding="utf-8-sig"))  # all values stay strings
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        stop(f"--config {file}: cannot be read as YAML: {error}")
    if not (top is None or isinstance(top, yaml.MappingNode)):
        stop(f"--config {file}: must hold lines such as `learning_rate: 5e-5`")
    actions = {name.lstrip("-"): action for name, action in parser._option_string_actions.items()}
    known = [name for name in actions if name not in ("h", "help", "config")]
    flags: dict[str, list[str]] = {}
    for key_node, node in top.value if top else []:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key not in known:
            stop(f"--config {file}: there is no flag {key!r}{instead(key) or suggestion(key, known)}")
        if key in flags:
            stop(f"--config {file}: {key} is given twice, the second time in line {line}")
        listed = isinstance(node, yaml.SequenceNode) and key.endswith(("_file", "_names"))
        values = node.value if listed else [node]
        if not all(isinstance(value, yaml.ScalarNode) for value in values):
            stop(f"--config {file}: {key} takes one value, a word or a number (line {line})")
        words = [str(value.value) for value in values]
        if listed and any(word.startswith("-") for word in words):
            stop(f"--config {file}: {key} has a value that begins with -, as a flag does (line {line})")
        if actions[key].type is true_or_false:  # YAML's other words for them
            words = [YES_OR_NO.get(word.lower(), word) for word in words]
        given = [f"--{key}", *words] if listed else [f"--{key}={words[0]}"]
        flags[key] = given if node.tag != "tag:yaml.org,2002:null" else []
    return [word for words in flags.values() for word in words]
