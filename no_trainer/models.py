"""Pretrained models and tokenizers by name, with a message for what can be wrong with them."""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from no_trainer.launch import say
from no_trainer.messages import stop


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
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError) as error:
        if any(Path(name).glob("pytorch_model*.bin")):
            convert = f"AutoModelForSequenceClassification.from_pretrained('{name}').save_pretrained('{name}-safe')"
            stop(
                f"--model_name_or_path {name} has its weights in a pickle, which could run code; if you trust it: "
                f'python -c "from transformers import *; {convert}"'
            )
        stop(f"--model_name_or_path {name}: {error}")


def load_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """The model's tokenizer, with a token to pad with."""
    tokenizer = from_pretrained(AutoTokenizer, args, use_fast=not args.use_slow_tokenizer)
    if args.use_slow_tokenizer and tokenizer.is_fast:
        say("warning: --use_slow_tokenizer changes nothing: this model has a fast tokenizer only")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            stop(f"--model_name_or_path {args.model_name_or_path}: its tokenizer has no token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(
    args: argparse.Namespace, config: PretrainedConfig, own: Callable[[Model], torch.nn.Module] | None = None
) -> tuple[torch.nn.Module, set[str]]:
    """The model of this configuration in float32, and the names of the weights that are new.

    `own` makes a model of one's own from it, which is saved, and loaded again, without transformers' help.
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
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        # on the CPU, dropout inside SDPA costs more than the attention matrix it saves; on XLA its mask is read
        # by the host in each step
        attn_implementation=args.attn_implementation or ("eager" if device.type in ("cpu", "xla") else None),
        use_safetensors=True,  # a pickle could run code
    )
    if loaded["missing_keys"] and args.num_train_epochs == 0 and not args.max_train_steps:
        say(f"warning: {args.model_name_or_path} has no trained head: what it answers is drawn at random")
    return own(model) if own else model, set(loaded["missing_keys"])


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


def name_model(model: torch.nn.Module) -> str:
    """What a checkpoint has to fit: architecture, size and configuration, wherever the model was loaded from."""
    config = model.config.to_dict() if hasattr(model, "config") else {}
    config = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}
    number = xxhash.xxh32_hexdigest(json.dumps(config, sort_keys=True, default=str).encode())
    return (
        f"{type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters, configuration {number}"
    )
