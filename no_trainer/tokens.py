"""The tokenizer: loading it, and checks that it fits the model and the data."""

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
    """The tokenizer, with a padding token and, for pairs of texts, a separator between them."""
    flag = "tokenizer_name" if args.tokenizer_name else "model_name_or_path"
    name = getattr(args, flag)
    if Path(name).is_dir() and not any(list(Path(name).glob(pattern)) for pattern in VOCABULARIES):
        stop(f"--{flag} {name} has no files of a tokenizer; name another with --tokenizer_name")
    tokenizer = from_pretrained(AutoTokenizer, args, flag, use_fast=not args.use_slow_tokenizer)
    if args.use_slow_tokenizer and tokenizer.is_fast:
        say("warning: --use_slow_tokenizer changes nothing: this model has a fast tokenizer only")
    if tokenizer.is_fast and not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        stop(f"--{flag} {name}: its tokenizer knows no words: a file is missing, such as tokenizer.json")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            stop(f"--{flag} {name}: its tokenizer has no padding token")
        tokenizer.pad_token = tokenizer.eos_token
    size = getattr(config, "vocab_size", None)
    if size and tokenizer.pad_token_id >= size:
        limit = f"but the model knows {size} tokens"
        hint = "name another with --tokenizer_name"
        stop(f"--{flag} {name}: its tokenizer pads with token {tokenizer.pad_token_id}, {limit}; {hint}")
    # many models know up to 1 % more tokens, for a round number
    if args.tokenizer_name and size and len(tokenizer) < 0.97 * size:
        own = f"it has {len(tokenizer):,} tokens, the model {size:,}"
        say(f"warning: the tokenizer of --tokenizer_name {name} does not seem to be the model's: {own}")
    if pairs:
        separate(tokenizer)
    return tokenizer


def separate(tokenizer: Tokenizer) -> None:
    """Make a tokenizer put a separator between two texts if it puts nothing there, like GPT-2's."""
    first, second = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("a", "b"))
    both = tokenizer("a", "b")["input_ids"]
    length = len(first + second)
    plain = [place for place in range(len(both)) if both[place : place + length] == first + second]
    separator = tokenizer.sep_token or tokenizer.eos_token
    if not plain:
        return
    if separator is None or not tokenizer.is_fast:
        say("warning: the tokenizer puts nothing between two texts: the model reads them as one")
        return
    before, after = both[: plain[0]], both[plain[0] + length :]
    names = {number: tokenizer.convert_ids_to_tokens(number) for number in before + after}
    names[number := tokenizer.convert_tokens_to_ids(separator)] = separator
    start, end = (" ".join(names[number] for number in part) for part in (before, after))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}".strip(),
        pair=f"{start} $A {names[number]} $B {end}".strip(),
        special_tokens=[(name, number) for number, name in names.items()],
    )
    say(f"the tokenizer puts nothing between two texts: {separator} is added there")


def fit_tokenizer(tokenizer: Tokenizer, model: torch.nn.Module, max_length: int) -> Tokenizer:
    """A copy of the tokenizer with the model's inputs only, and padding where it is not read."""
    tokenizer = copy.deepcopy(tokenizer)
    if isinstance(model, PreTrainedModel):
        taken = inputs_of(model)
        names = tokenizer.model_input_names
        tokenizer.model_input_names = [name for name in names if name in taken]
    if position_tables(model):
        tokenizer.padding_side = "right"  # on the left it would shift the positions of the words
    if getattr(getattr(model, "config", None), "summary_type", None) == "last":
        tokenizer.padding_side = "left"  # XLNet's head reads the last token, padding or not
    tokenizer.model_max_length = max_length  # saved, so that texts are later cut as here
    return tokenizer


def check_tokens(data: dict[str, Dataset], model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    """Check that the model can read the tokens of the data.

    Raises:
        SystemExit: 2, if it cannot, or if the tokenizer knows almost none of the words.
    """
    words = None
    with contextlib.suppress(AttributeError, NotImplementedError):  # custom models; CANINE reads characters
        words = model.get_input_embeddings()
    known, config = getattr(words, "num_embeddings", None), getattr(model, "config", None)
    hint = "; name the tokenizer of the model with --tokenizer_name"
    types = getattr(config, "type_vocab_size", None)
    added = list(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    for name, split in data.items():
        unknown, words_seen, ends = 0, 0, []
        for table in split.with_format("arrow").iter(batch_size=10_000):
            lists = table["input_ids"].combine_chunks()
            tokens, lengths = lists.flatten().to_numpy(), lists.value_lengths().to_numpy()
            if known and (highest := tokens.max()) >= known:
                limit = f"but the model knows {known:,} tokens"
                stop(f"the tokenizer makes token {highest} of the {name} data, {limit}{hint}")
            if types is not None and "token_type_ids" in split.column_names:
                highest = pc.max(pc.list_flatten(table["token_type_ids"])).as_py()
                if highest >= max(types, 1):
                    unread = f"type {highest}, which the model does not know"
                    stop(f"the tokenizer marks the second text with {unread}{hint}")
            unknown += np.sum(tokens == tokenizer.unk_token_id)
            words_seen += np.sum(~np.isin(tokens, added))
            if getattr(config, "is_encoder_decoder", False):
                starts = np.cumsum(lengths) - lengths
                ends.append(np.add.reduceat(tokens == config.eos_token_id, starts))
        if (share := unknown / max(words_seen, 1)) > 0.25:
            said = f"{share:.0%} of the tokens of the {name} data are {tokenizer.unk_token}"
            say(f"warning: {said}: the tokenizer does not know them")
            if share > 0.9:
                stop(f"{said}: there is nothing to learn from{hint}")
        if ends:
            check_ends(name, np.concatenate(ends), tokenizer.eos_token, hint)


def check_ends(name: str, counts: np.ndarray, end: str, hint: str) -> None:
    """Check that all rows have the same number of end tokens, as heads of encoder-decoders require.

    `counts`: the number of end tokens in each row, [rows].
    """
    usual = int(np.bincount(counts).argmax())
    if usual == 0:
        stop(f"the tokenizer ends no text with {end}, where the head of this model reads{hint}")
    if odd := np.flatnonzero(counts != usual).tolist():
        stop(
            f"row {odd[0] + 1} of the {name} data has {counts[odd[0]]} times {end}, others have {usual}: "
            "the model would take it for the end of the text; remove it from the text"
        )
