"""Loading pretrained models, with checks of their weights, and custom models built around them."""

import argparse
import copy
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import Accelerator, PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedModel as Model

from no_trainer.checks import trains
from no_trainer.commands import quote
from no_trainer.folder import checkpoints
from no_trainer.launch import say
from no_trainer.messages import many, some, stop, under_way

LEAKY = ("convbert", "nystromformer", "reformer", "yoso")  # their mask does not hide all of the padding
# modules with an embedding of each position
POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
CONVERT = """\
import glob, torch, safetensors.torch as s; f = {folder!r} + "/"; \
w = dict(x for b in glob.glob(f + "pytorch_model*.bin") for x in torch.load(b, weights_only=True).items()); \
s.save_file({{n: t.clone() for n, t in w.items()}}, f + "model.safetensors", dict(format="pt"))"""


def from_pretrained(kind: Any, args: argparse.Namespace, flag: str = "model_name_or_path", **options: Any) -> Any:
    """What the Auto class `kind` loads for the name that is given by `flag`.

    Raises:
        SystemExit: 2, if it cannot be loaded, with the reason.
    """
    name, revision, trust = getattr(args, flag), args.model_revision, args.trust_remote_code
    revision = revision if flag == "model_name_or_path" else "main"
    try:
        with under_way(f"loading {name}"):
            return kind.from_pretrained(name, revision=revision, trust_remote_code=trust, **options)
    except Exception as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        if what := what_it_is(Path(name)):
            stop(f"--{flag} {name} {what}")
        if isinstance(error, (OSError, ImportError, StrictDataclassError)):  # with clear messages
            stop(f"--{flag} {name}: {error}")
        if args.attn_implementation and "attn_implementation" in str(error):
            stop(f"--attn_implementation {args.attn_implementation}: {error}")
        parts = {AutoConfig: "config.json", AutoTokenizer: "its tokenizer files"}
        part = parts.get(kind, "its weights or its config.json")
        known = isinstance(error, (ValueError, SafetensorError))
        why = str(error) if known else f"{type(error).__name__}: {error}"
        stop(f"--{flag} {name}: {part} cannot be used: {why}")


def what_it_is(folder: Path) -> str:
    """What a folder without a model is and what to give instead; empty if it is not known."""
    if (folder / "progress.json").is_file():
        return "is a checkpoint, not a model: finish its run with --resume_from_checkpoint, then give its --output_dir"
    if checkpoints(folder) and not (folder / "config.json").is_file():
        return "is a run that has not ended: finish it with --resume_from_checkpoint latest"
    if (folder / "adapter_config.json").is_file():
        return "is an adapter of PEFT: merge it with merge_and_unload() and give the merged model"
    if list(folder.glob("pytorch_model*.bin")) and not list(folder.glob("*.safetensors")):
        convert = CONVERT.format(folder=str(folder))
        hint = f"to convert them without running any: python -c {quote(convert)}"
        return f"has its weights in a pickle, which could run code; {hint}"
    return ""


def load_weights(
    args: argparse.Namespace, config: PretrainedConfig, own: Callable[[Model], torch.nn.Module] | None = None
) -> tuple[torch.nn.Module, set[str]]:
    """The model of this configuration in float32, and the names of its newly initialized weights.

    `own` builds a custom model around it; `save_model` and `load_own` save and load that.

    Raises:
        SystemExit: 2, if weights below the head are missing in the files or have another shape.
    """
    if saved := getattr(config, "own_class", None):
        return load_own(args, config, own, saved), set()
    if args.trust_remote_code:
        say(f"warning: --trust_remote_code runs the Python code of {args.model_name_or_path}")
    if not getattr(config, "return_dict", True):  # the loop reads the loss by its name
        config.return_dict = True
    device = PartialState().device
    # faster than SDPA, whose dropout is slow on a CPU and whose mask XLA copies to the host in each step
    fast = "eager" if device.type in ("cpu", "xla") else None
    model, loaded = from_pretrained(
        AutoModelForSequenceClassification,
        args,
        output_loading_info=True,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # checked below
        attn_implementation=args.attn_implementation or fast,
        use_safetensors=True,  # a pickle could run code
    )
    mismatched = loaded["mismatched_keys"]
    shapes = {name: f"{tuple(there)} there, {tuple(here)} here" for name, there, here in mismatched}
    new = set(loaded["missing_keys"]) | set(shapes)
    body, parts = f"{model.base_model_prefix}.", dict(model.base_model.named_children())
    unused = [name for name in loaded["unexpected_keys"] if name.removeprefix(body).split(".")[0] in parts]
    if unused := sorted(name for name in unused if not re.search("pooler|position_ids", name)):
        say(
            f"warning: {many(len(unused), 'weight')} of {args.model_name_or_path} have no place in the model "
            f"that its config.json describes: {some(unused)}"
        )
    check_weights(args.model_name_or_path, model, new, shapes)
    if shapes and not args.ignore_mismatched_sizes:
        stop(
            f"--model_name_or_path {args.model_name_or_path} has a head of another size than the "
            f"{config.num_labels} labels of the data; --ignore_mismatched_sizes starts a new head"
        )
    of_tokens = any(name.endswith("ForTokenClassification") for name in config.architectures or [])
    if (new or of_tokens) and not trains(args):
        say(f"warning: {args.model_name_or_path} has no trained head: its predictions are random")
    return own(model) if own else model, new


def check_weights(name: str, model: Model, new: set[str], shapes: dict[str, str]) -> None:
    """Check that only the head is new, and perhaps the pooler, which many base models lack."""
    body = f"{model.base_model_prefix}."
    lost = sorted(weight for weight in new if weight.startswith(body) and ".pooler." not in weight)
    if lost:
        total = sum(weight.startswith(body) for weight, _ in model.named_parameters())
        share = f"{len(lost)} of the {many(total, 'weight')}"
        found = [f"{weight} ({shapes[weight]})" if weight in shapes else weight for weight in lost]
        stop(
            f"--model_name_or_path {name}: {share} below the head are not in its files, "
            f"or not as its type, {model.config.model_type}, has them: {some(found)}"
        )
    if pooler := sorted(weight for weight in new if weight.startswith(body)):
        names = some(pooler)
        say(f"the model comes without a pooler: {names} start at random, like the head")


def load_own(args: argparse.Namespace, config: PretrainedConfig, own: Callable | None, saved: str) -> torch.nn.Module:
    """The custom model that `own` builds, of the class named `saved`, with its saved weights."""
    model = own(AutoModelForSequenceClassification.from_config(config)) if own else None
    if type(model).__name__ != saved:
        name = args.model_name_or_path
        stop(f"--model_name_or_path {name} holds a {saved}: use the script that defines this class")
    load_model(model, Path(args.model_name_or_path) / "model.safetensors")
    return model


def save_model(model: torch.nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Save a transformers model as usual, a custom one as its weights with its `config`, if any."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, state_dict=weights)
        return
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    if hasattr(model, "config"):
        config = copy.deepcopy(model.config)
        config.own_class = type(model).__name__
        config.save_pretrained(folder)


def position_tables(model: torch.nn.Module) -> list[torch.nn.Embedding]:
    """The embeddings of absolute positions; none if positions are relative or rotary."""
    named = ((name.rpartition(".")[2], module) for name, module in model.named_modules())
    tables = [module for name, module in named if name in POSITIONS]
    return [table for table in tables if isinstance(table, torch.nn.Embedding)]


def length_limit(model: torch.nn.Module) -> float:
    """The number of tokens that the model can read; infinity if it has no limit."""
    config, limits = getattr(model, "config", None), [math.inf]
    for table in position_tables(model):
        # RoBERTa and others count positions from padding_idx + 1, BART and others from an offset
        after_padding = 0 if table.padding_idx is None else table.padding_idx + 1
        limits.append(table.num_embeddings - (getattr(table, "offset", 0) or after_padding))
    named = getattr(config, "max_position_embeddings", None) or 0
    kind = str(getattr(config, "position_embedding_type", ""))
    relative = getattr(config, "relative_attention", False) or "relative" in kind
    if named > 0 and not relative:
        limits.append(named)
    return min(limits)


def fit_length(max_length: int, model: torch.nn.Module) -> int:
    """How many tokens of a text are read: `max_length`, or the model's limit if that is less."""
    if max_length > (limit := length_limit(model)):
        say(f"warning: --max_length {max_length} is more than the model can read; it is lowered to {limit}")
    return min(max_length, limit)


def reads_padding(model: torch.nn.Module) -> bool:
    """Whether padding changes a model's predictions, so that all texts need one length."""
    if not isinstance(model, Model):
        return False
    # BigBird's sparse attention becomes a full one, for good, at the first batch that is short
    sparse = getattr(model.config, "attention_type", None) == "block_sparse"
    return sparse or "attention_mask" not in inputs_of(model) or model.config.model_type in LEAKY


def inputs_of(model: Model) -> list[str]:
    """The names of the model's inputs, with the usual ones if `forward` only passes them on."""
    names = list(inspect.signature(model.forward).parameters)
    return names if "input_ids" in names else [*names, "input_ids", "token_type_ids", "attention_mask"]


def name_model(model: torch.nn.Module) -> str:
    """The class, size and configuration of a model, which a checkpoint has to match."""
    config = model.config.to_dict() if hasattr(model, "config") else {}
    config = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}
    number = xxhash.xxh32_hexdigest(json.dumps(config, sort_keys=True, default=str).encode())
    size = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__} of {size:,} parameters, configuration {number}"


def weights_are_finite(accelerator: Accelerator, model: torch.nn.Module) -> bool:
    """Whether the weights on all processes are finite numbers."""
    # with ZeRO-3, a process has a part of each weight, `ds_tensor`
    parts = [getattr(weight, "ds_tensor", weight).detach() for weight in model.parameters()]
    norm = torch.nn.utils.get_total_norm(parts)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return bool(accelerator.reduce(norm).isfinite())
