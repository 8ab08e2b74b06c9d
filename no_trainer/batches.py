"""From rows to batches: tokens with their lengths, the order of an epoch, and padding."""

import atexit
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
import xxhash
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase as Tokenizer

from no_trainer.files import no_cache
from no_trainer.glue import ROW, Task
from no_trainer.graphs import compiler_records
from no_trainer.labels import numbers
from no_trainer.models import length_limit


def tokenize(
    splits: dict[str, Dataset], encode: Callable, tokenizer: Tokenizer, task: Task, workers: int | None = None
) -> dict[str, Dataset]:
    """Each split's rows as `encode` tokenizes them, with `length`, their number of tokens if uncut.

    They are cached; the cache depends on everything that `encode` reads.
    """

    max_length, separator = task.max_length, f" {task.separator} "  # not the whole task: the cache depends on them

    def encode_with_length(rows: dict[str, list]) -> dict[str, list]:
        labels = {"label": rows["label"]} if "label" in rows else {}
        texts = {name: [t or "" for t in cells] for name, cells in rows.items() if name not in ("label", ROW)}
        inputs = encode(texts | labels)
        # some tokenizers add no special tokens: an empty text would have no token at all
        inputs["input_ids"] = [row or [tokenizer.pad_token_id] for row in inputs["input_ids"]]
        lengths = [len(row) for row in inputs["input_ids"]]
        if at_limit := [row for row, length in enumerate(lengths) if length >= max_length]:
            columns = [[column[row] for row in at_limit] for column in texts.values()]
            if len(columns) > 2:
                columns = [[separator.join(cells) for cells in zip(*columns, strict=True)]]
            uncut = tokenizer(*columns, verbose=False)["input_ids"]
            for row, tokens in zip(at_limit, uncut, strict=True):
                lengths[row] = len(tokens)
        return inputs | {"length": lengths}

    tokenized = {}
    for name, data in splits.items():
        processes = workers or min(os.cpu_count() or 1, 8, 1 + len(data) // 100_000)
        how = {"remove_columns": data.column_names, "num_proc": processes if processes > 1 else None}
        try:
            tokenized[name] = data.map(encode_with_length, batched=True, desc=f"Tokenizing {name}", **how)
        except OSError as error:
            no_cache(error)
    tokenizer("")  # resets the truncation, which would be saved with the tokenizer
    return tokenized


def fingerprint(data: Dataset) -> str:
    """16 hexadecimal digits that depend on every token and label and on the order of the rows."""
    digest = xxhash.xxh3_64()
    for table in data.with_format("arrow").iter(batch_size=10_000):
        tokens = table["input_ids"].combine_chunks()
        labels = table["labels"].combine_chunks()
        labels = labels.flatten() if pa.types.is_list(labels.type) else labels
        for values in (tokens.value_lengths(), tokens.flatten(), labels):
            digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


@dataclass(eq=False)
class GlobalBatchSampler(Sampler[list[int]]):
    """Batches of row numbers, in an order that depends on seed, epoch and global batch size alone.

    A global batch is what one optimizer step sees. It is handed out in consecutive device batches,
    so it is the same for any number of processes and gradient accumulation steps. The last one
    of an epoch is filled up from the start of the epoch's order: every step is full.
    """

    rows: int
    global_batch: int
    batch_size: int  # of one device
    seed: int
    lengths: np.ndarray | None  # tokens per row, as cut, [rows]; None: no grouping by length
    # (seed, epoch) to row numbers; None: each row once, shuffled
    order: Callable[[int, int], np.ndarray] | None = None
    epoch: int = 0
    first: int = 0  # global batch of the epoch to begin with
    drop_last: ClassVar[bool] = False  # read by Accelerate
    window: ClassVar[int] = 50  # global batches whose rows are sorted by length together

    @property
    def steps_per_epoch(self) -> int:
        rows = len(self.order(self.seed, 0)) if self.order and self.rows else self.rows
        return math.ceil(max(rows, 1) / self.global_batch)

    def start(self, epoch: int, first: int = 0) -> None:
        """Make the next iteration begin at global batch number `first` of `epoch`."""
        self.epoch, self.first = epoch, first

    def global_batches(self) -> np.ndarray:
        """This epoch's row numbers, [steps, global batch]."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = self.order(self.seed, self.epoch) if self.order else generator.permutation(self.rows)
        order = np.resize(order, self.steps_per_epoch * self.global_batch)
        if self.lengths is not None:
            size = self.window * self.global_batch
            windows = [order[begin : begin + size] for begin in range(0, len(order), size)]
            ranks = [np.argsort(-self.lengths[rows], kind="stable") for rows in windows]
            order = np.concatenate([rows[rank] for rows, rank in zip(windows, ranks, strict=True)])
        batches = order.reshape(-1, self.global_batch)
        return batches if self.lengths is None else generator.permutation(batches)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.global_batches()[self.first :]:
            for begin in range(0, self.global_batch, self.batch_size):
                yield rows[begin : begin + self.batch_size].tolist()

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first) * (self.global_batch // self.batch_size)


@dataclass
class Collate:
    """Pads rows to one length. A row has lists of tokens, `labels` and, in evaluation, `row`."""

    fill: dict[str, int]  # the padding value of each input
    length: int | None  # to pad to; None: that of the longest row
    multiple: int  # to which the longest row is rounded up
    limit: float  # but no further than this
    left: bool  # whether to pad on the left
    mask: bool  # whether the model takes an attention mask

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        longest = self.length or min(-(-max(lengths) // self.multiple) * self.multiple, self.limit)
        shape = (len(rows), longest)
        batch = {name: np.full(shape, fill) for name, fill in self.fill.items() if name in rows[0]}
        mask = np.zeros((len(rows), longest), np.int64)
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            place = slice(longest - length, None) if self.left else slice(length)
            mask[number, place] = 1
            for name, array in batch.items():
                array[number, place] = row[name]
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        tensors |= {"attention_mask": torch.from_numpy(mask)} if self.mask else {}
        others = [name for name in rows[0] if name not in batch]
        return tensors | {name: torch.tensor([row[name] for row in rows]) for name in others}


def make_collate(
    tokenizer: Tokenizer, accelerator: Accelerator, model: torch.nn.Module, max_length: int | None
) -> Collate:
    """A Collate that pads to `max_length` or, without one, to a multiple that holds the longest row.

    XLA compiles each new shape, so it needs a `max_length`.
    """
    # tensor cores want these multiples; on a CPU they keep the number of shapes small
    multiple = 16 if accelerator.mixed_precision == "fp8" else 8
    compiler = accelerator.state.dynamo_plugin
    if compiler.backend != DynamoBackend.NO and (compiler_records(accelerator) or not compiler.dynamic):
        multiple = 16 if compiler.dynamic else 32  # each length is recorded or compiled by itself
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    mask = "attention_mask" in tokenizer.model_input_names
    return Collate(fill, max_length, multiple, length_limit(model), tokenizer.padding_side == "left", mask)


def make_loader(accelerator: Accelerator, data: Dataset, collate: Callable, workers: int, **how: Any) -> DataLoader:
    """A loader of this process's batches; `how` is a batch_sampler or a batch_size."""
    loader = DataLoader(
        data.remove_columns("length"),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # otherwise each epoch would draw from dropout's generator
        **how,
    )
    loader = accelerator.prepare(loader)
    if workers:
        atexit.register(end_workers)
    accelerator._dataloaders.clear()  # Progress has the place in the data; Accelerate would fail to save it on XLA
    return loader


def ignore_signals(_worker: int) -> None:
    """Ignore signals in a worker: its parent process handles them and ends the worker."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_workers() -> None:
    """Kill the remaining workers: Python would wait for them, as they ignore its signal."""
    for worker in torch.multiprocessing.active_children():
        worker.kill()


def make_eval_loaders(
    accelerator: Accelerator, splits: dict[str, Dataset], collate: Callable, workers: int, batch_size: int
) -> dict[str, DataLoader]:
    """One loader per split, longest rows first: little padding, and out of memory shows at once."""
    loaders = {}
    datasets.disable_progress_bars()  # the rest takes a moment only
    for name, data in splits.items():
        order = np.argsort(-numbers(data, "length"), kind="stable")
        rows = data.add_column("row", np.arange(len(data))).select(order)  # its number in the file
        loaders[name] = make_loader(accelerator, rows, collate, workers, batch_size=batch_size)
    return loaders
