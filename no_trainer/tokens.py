"""The tokenizer, as the model and the data need it."""

import argparse
import contextlib
import copy
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from no_trainer.launch import say
from no_trainer.messages import stop
from no_trainer.models import from_pretrained, inputs_of, position_tables

VOCABULARIES = ("tokenizer*", "*vocab*", "merges.txt", "*.model", "*.tiktoken", "special_tokens_map.json")


def load_tokenizer(args: argparse.Namespace, config: PretrainedConfig, pairs: bool) -> Tokenizer:
    """The model's tokenizer, or that of --tokenizer_name: with a token to pad with, and one between two texts."""
    flag = "tokenizer_name" if args.tokenizer_name else "model_name_or_path"
    name = getattr(args, flag)
    if Path(name).is_dir() and not any(list(Path(name).glob(pattern)) for pattern in VOCABULARIES):
        stop(f"--{flag} {name} has no files of a tokenizer; --tokenizer_name names a model whose tokenizer to take")
    tokenizer = from_pretrained(AutoTokenizer, args, flag, use_fast=not args.use_slow_tokenizer)
    if args.use_slow_tokenizer and tokenizer.is_fast:
        say("warning: --use_slow_tokenizer changes nothing: this model has a fast tokenizer only")
    if tokenizer.is_fast and not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        stop(f"--{flag} {name}: its tokenizer knows no words: files are missing, such as tokenizer.json")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            stop(f"--{flag} {name}: its tokenizer has no token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id >= (getattr(config, "vocab_size", None) or tokenizer.pad_token_id + 1):
        stop(f"--{flag} {name}: its tokenizer pads with token {tokenizer.pad_token_id}, but the model knows "
             f"{config.vocab_size} tokens; --tokenizer_name names another")  # fmt: skip
    if pairs:
        separate(tokenizer)
    return tokenizer


def separate(tokenizer: Tokenizer) -> None:
    """Have a tokenizer put a token between two texts if it puts nothing there, as those of GPT-2 and its kin."""
    first, second = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("a", "b"))
    both = tokenizer("a", "b")["input_ids"]
    plain = [place for place in range(len(both)) if both[place : place + len(first + second)] == first + second]
    separator = tokenizer.sep_token or tokenizer.eos_token
    if not plain or separator is None or not tokenizer.is_fast:
        return
    before, after = both[: plain[0]], both[plain[0] + len(first + second) :]
    names = {number: tokenizer.convert_ids_to_tokens(number) for number in before + after}
    names[number := tokenizer.convert_tokens_to_ids(separator)] = separator
    start, end = (" ".join(names[number] for number in part) for part in (before, after))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}".strip(),
        pair=f"{start} $A {names[number]} $B {end}".strip(),
        special_tokens=[(name, number) for number, name in names.items()],
    )
    say(f"the tokenizer puts nothing between two texts: {separator} is put there")


def fit_tokenizer(tokenizer: Tokenizer, model: torch.nn.Module, max_length: int) -> Tokenizer:
    """The tokenizer as the model reads it: without inputs that it does not take, padding where that is not read."""
    tokenizer = copy.deepcopy(tokenizer)
    if isinstance(model, PreTrainedModel):
        taken = inputs_of(model)
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    if position_tables(model):
        tokenizer.padding_side = "right"  # on the left it would move the places of the words
    if getattr(getattr(model, "config", None), "summary_type", None) == "last":
        tokenizer.padding_side = "left"  # XLNet's head reads whatever is last
    tokenizer.model_max_length = max_length  # so that whoever loads the model can cut texts as they were cut here
    return tokenizer


def check_tokens(data: dict[str, Dataset], model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    """Whether the model can read what the tokenizer has made of the data.

    Raises:
        SystemExit: 2, where it cannot, or where next to nothing in the texts is known to the tokenizer.
    """
    words = None
    with contextlib.suppress(AttributeError, NotImplementedError):  # of one's own; of models that hash characters
        words = model.get_input_embeddings()
    known, config = getattr(words, "num_embeddings", None), getattr(model, "config", None)
    hint = "; --tokenizer_name names the tokenizer of the model"
    types = getattr(config, "type_vocab_size", None)
    added = list(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    for name, split in data.items():
        unknown, words_seen, ends = 0, 0, []
        for table in split.with_format("arrow").iter(batch_size=10_000):
            lists = table["input_ids"].combine_chunks()
            tokens, lengths = lists.flatten().to_numpy(), lists.value_lengths().to_numpy()
            if known and (highest := tokens.max()) >= known:
                stop(f"the tokenizer makes token {highest} of the {name} data; the model knows {known:,} tokens{hint}")
            if types is not None and "token_type_ids" in split.column_names:
                highest = pc.max(pc.list_flatten(table["token_type_ids"])).as_py()
                if highest >= max(types, 1):
                    stop(
                        f"the tokenizer marks the second text with type {highest}, which the model does not know{hint}"
                    )
            unknown += np.sum(tokens == tokenizer.unk_token_id)
            words_seen += np.sum(~np.isin(tokens, added))
            if getattr(config, "is_encoder_decoder", False):
                ends.append(np.add.reduceat(tokens == config.eos_token_id, np.cumsum(lengths) - lengths))
        if (share := unknown / max(words_seen, 1)) > 0.25:
            said = f"{share:.0%} of the tokens of the {name} data are {tokenizer.unk_token}"
            say(f"warning: {said}: the tokenizer does not know them")
            if share > 0.9:
                stop(f"{said}: there is nothing to learn from{hint}")
        if ends:
            check_ends(name, np.concatenate(ends), tokenizer.eos_token, hint)


def check_ends(name: str, counts: np.ndarray, end: str, hint: str) -> None:
    """Whether each row has as many tokens that end a text: heads of encoder-decoders read at the last of them.

    `counts`: of such tokens in each row, [rows].
    """
    usual = int(np.bincount(counts).argmax())
    if usual == 0:
        stop(f"the tokenizer ends no text with {end}, at which the head of this model reads{hint}")
    if odd := np.flatnonzero(counts != usual).tolist():
        stop(
            f"row {odd[0] + 1} of the {name} data has {counts[odd[0]]} times {end}, others have {usual}: it stands in "
            "the text, and the model would take it for the end; take it out"
        )
