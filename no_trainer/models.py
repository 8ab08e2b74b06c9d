"""Pretrained models by name, with what can be wrong with them told, and models of one's own around them."""

import argparse
import copy
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedModel as Model

from no_trainer.commands import quote
from no_trainer.launch import say
from no_trainer.messages import many, some, stop, under_way

LEAKY = ("convbert", "nystromformer", "yoso")  # these have a mask, but convolve or sample over the padding
POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")  # modules: a row for each place
CONVERT = """\
import glob, torch, safetensors.torch as s; f = {folder!r} + "/"; \
w = dict(x for b in glob.glob(f + "pytorch_model*.bin") for x in torch.load(b, weights_only=True).items()); \
s.save_file({{n: t.clone() for n, t in w.items()}}, f + "model.safetensors", dict(format="pt"))"""


def from_pretrained(kind: Any, args: argparse.Namespace, flag: str = "model_name_or_path", **options: Any) -> Any:
    """What an Auto class, `kind`, makes of the name that this flag has.

    Raises:
        SystemExit: 2, whatever the files of the model hold that it cannot be made of.
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
        if isinstance(error, (OSError, ImportError, StrictDataclassError)):  # transformers says what is wrong
            stop(f"--{flag} {name}: {error}")
        if args.attn_implementation and "attn_implementation" in str(error):
            stop(f"--attn_implementation {args.attn_implementation}: {error}")
        parts = {AutoConfig: "config.json", AutoTokenizer: "the files of its tokenizer"}
        why = str(error) if isinstance(error, (ValueError, SafetensorError)) else f"{type(error).__name__}: {error}"
        stop(f"--{flag} {name}: {parts.get(kind, 'its weights, or config.json,')} cannot be used: {why}")


def what_it_is(folder: Path) -> str:
    """What a folder is that is no model, and what to give instead; nothing where that is not known."""
    if (folder / "progress.json").is_file():
        return "is a checkpoint of a run: --resume_from_checkpoint goes on from it; the model is in --output_dir"
    if (folder / "adapter_config.json").is_file():
        return "is an adapter of PEFT: merge it into its model with merge_and_unload(), and give what that saves"
    if list(folder.glob("pytorch_model*.bin")) and not list(folder.glob("*.safetensors")):
        convert = CONVERT.format(folder=str(folder))
        hint = f"to convert them and run none: python -c {quote(convert)}"
        return f"has its weights in a pickle, which could run code; {hint}"
    return ""


def load_weights(
    args: argparse.Namespace, config: PretrainedConfig, own: Callable[[Model], torch.nn.Module] | None = None
) -> tuple[torch.nn.Module, set[str]]:
    """The model of this configuration in float32, and the names of the weights that are new.

    `own` makes a model of one's own from it, which is saved, and loaded again, without transformers' help.

    Raises:
        SystemExit: 2, where weights beyond the head are not in the files, or have another shape there.
    """
    if saved := getattr(config, "own_class", None):
        return load_own(args, config, own, saved), set()
    if args.trust_remote_code:
        say(f"warning: --trust_remote_code runs whatever Python code comes with {args.model_name_or_path}")
    device = PartialState().device
    model, loaded = from_pretrained(
        AutoModelForSequenceClassification,
        args,
        output_loading_info=True,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # each is looked at below
        # on the CPU, dropout inside SDPA costs more than the attention matrix it saves; on XLA its mask is read
        # by the host in each step
        attn_implementation=args.attn_implementation or ("eager" if device.type in ("cpu", "xla") else None),
        use_safetensors=True,  # a pickle could run code
    )
    body = f"{model.base_model_prefix}."
    unused = [
        name
        for name in loaded["unexpected_keys"]
        if name.startswith(body) and not re.search("pooler|position_ids", name)
    ]
    if unused:
        say(
            f"warning: {many(len(unused), 'weight')} of {args.model_name_or_path} have no place in the model that its "
            f"config.json describes: {some(sorted(unused), len(unused))}"
        )
    missing = set(loaded["missing_keys"])
    shapes = {name: f"{tuple(there)} there, {tuple(here)} here" for name, there, here in loaded["mismatched_keys"]}
    new = missing | set(shapes)
    check_weights(args.model_name_or_path, model, new, shapes)
    if shapes and not args.ignore_mismatched_sizes:
        stop(
            f"--model_name_or_path {args.model_name_or_path} has a head of another size than the {config.num_labels} "
            "labels of the data; --ignore_mismatched_sizes starts a new head"
        )
    if new and args.num_train_epochs == 0 and not args.max_train_steps:
        say(f"warning: {args.model_name_or_path} has no trained head: what it answers is drawn at random")
    return own(model) if own else model, new


def check_weights(name: str, model: Model, new: set[str], shapes: dict[str, str]) -> None:
    """Whether only the head is new, and perhaps the pooler, which many base models come without."""
    body = f"{model.base_model_prefix}."
    lost = sorted(weight for weight in new if weight.startswith(body) and ".pooler." not in weight)
    if lost:
        total = sum(weight.startswith(body) for weight, _ in model.named_parameters())
        found = [f"{weight} ({shapes[weight]})" if weight in shapes else weight for weight in lost]
        stop(
            f"--model_name_or_path {name}: {len(lost)} of the {many(total, 'weight')} below the head are not in its "
            f"files as its model type, {model.config.model_type}, has them: {some(found, len(found))}"
        )
    if pooler := sorted(weight for weight in new if weight.startswith(body)):
        say(f"the model comes without a pooler: {some(pooler, len(pooler))} start at random, as the head does")


def load_own(args: argparse.Namespace, config: PretrainedConfig, own: Callable | None, saved: str) -> torch.nn.Module:
    """A model of one's own with the weights that `save_model` saved."""
    model = own(AutoModelForSequenceClassification.from_config(config)) if own else None
    if type(model).__name__ != saved:
        stop(f"--model_name_or_path {args.model_name_or_path} holds a {saved}, a class of the script that saved it")
    load_model(model, Path(args.model_name_or_path) / "model.safetensors")
    return model


def save_model(model: torch.nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Save a model of transformers as it does; one of one's own as its weights, with its `config` if it has one."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, state_dict=weights)
        return
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    if hasattr(model, "config"):
        config = copy.deepcopy(model.config)
        config.own_class = type(model).__name__
        config.save_pretrained(folder)


def position_tables(model: torch.nn.Module) -> list[torch.nn.Embedding]:
    """The embeddings of absolute positions; none where a model has relative ones, or rotates."""
    named = ((name.rpartition(".")[2], module) for name, module in model.named_modules())
    return [module for name, module in named if name in POSITIONS and isinstance(module, torch.nn.Embedding)]


def fit_length(max_length: int, model: torch.nn.Module) -> int:
    """The length that texts are cut at, or what the model has positions for if that is less."""
    config, limits = getattr(model, "config", None), []
    for table in position_tables(model):
        # RoBERTa and its kin count positions from the one after the padding's, BART and its kin from the third
        skipped = getattr(table, "offset", 0) or (0 if table.padding_idx is None else table.padding_idx + 1)
        limits.append(table.num_embeddings - skipped)
    named = getattr(config, "max_position_embeddings", None) or 0
    relative = getattr(config, "relative_attention", False) or "relative" in str(
        getattr(config, "position_embedding_type", "")
    )
    if named > 0 and not relative:
        limits.append(named)
    if limits and max_length > min(limits):
        say(f"warning: --max_length {max_length} is more than the model can read; it is lowered to {min(limits)}")
    return min([max_length, *limits])


def reads_padding(model: torch.nn.Module) -> bool:
    """Whether a model's answer depends on how far a text is padded, so that all are to be padded alike."""
    return isinstance(model, Model) and ("attention_mask" not in inputs_of(model) or model.config.model_type in LEAKY)


def inputs_of(model: Model) -> list[str]:
    """The names of what a model of transformers takes; a `forward` that only hands things on names none of them."""
    names = list(inspect.signature(model.forward).parameters)
    return names if "input_ids" in names else [*names, "input_ids", "token_type_ids", "attention_mask"]


def name_model(model: torch.nn.Module) -> str:
    """What a checkpoint has to fit: architecture, size and configuration, wherever the model was loaded from."""
    config = model.config.to_dict() if hasattr(model, "config") else {}
    config = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}
    number = xxhash.xxh32_hexdigest(json.dumps(config, sort_keys=True, default=str).encode())
    return (
        f"{type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters, configuration {number}"
    )
