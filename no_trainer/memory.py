"""Batch sizes that fit the memory of the device; the global batch of the run stays the same."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import GradientState
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset

from no_trainer.checks import trains
from no_trainer.commands import resume_command
from no_trainer.folder import checkpoints
from no_trainer.graphs import allocate_gradients, compiler_records
from no_trainer.labels import numbers
from no_trainer.launch import say
from no_trainer.messages import stop

# each process has the whole model
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def fit_batches(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    collate: Callable,
    train_data: Dataset,
    eval_data: dict[str, Dataset],
) -> tuple[int, int]:
    """The batch sizes for training and for evaluation, halved until the longest rows fit the memory.

    All processes get the same sizes. The batch size for training stays a divisor of the flag's, so that more
    gradient accumulation makes the same global batch. Afterwards, gradients are cleared and the random state
    is as before. A model that is spread over several processes is not tried, since a process that fails
    would leave the others waiting.
    """
    batch_size, eval_size = args.per_device_train_batch_size, args.per_device_eval_batch_size
    if accelerator.distributed_type not in WHOLE or accelerator.device.type == "xla":
        return batch_size, eval_size
    bare = accelerator.unwrap_model(model, keep_torch_compile=False)  # DDP would wait for others

    def try_training(size: int) -> None:
        bare.train()
        trained = sum(p.numel() * p.element_size() for p in bare.parameters() if p.requires_grad)
        # for AdamW's state after the first step; on a CPU, an empty tensor takes no memory
        later = 0 if accelerator.device.type == "cpu" else 2 * trained
        reserved = torch.empty(later, dtype=torch.uint8, device=accelerator.device)
        batch = send_to_device(collate(longest(train_data, size)), accelerator.device)
        bare(**batch).loss.backward()
        del reserved

    def try_evaluation(size: int) -> None:
        bare.eval()
        for data in eval_data.values():
            batch = collate(longest(data, size))
            batch.pop("labels", None)
            with torch.no_grad():
                bare(**send_to_device(batch, accelerator.device))

    with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
        if len(train_data) and trains(args):
            sizes = [size for size in range(batch_size, 0, -1) if batch_size % size == 0]
            batch_size = largest(accelerator, bare, "per_device_train_batch_size", sizes, try_training)
        sizes = [eval_size >> halvings for halvings in range(eval_size.bit_length())]
        eval_size = largest(accelerator, bare, "per_device_eval_batch_size", sizes, try_evaluation)
    return batch_size, eval_size


def preallocate_gradients(accelerator: Accelerator, model: torch.nn.Module, accumulation: int) -> bool:
    """Give each gradient memory of its own if CUDA graphs would overwrite what is accumulated; returns whether.

    A compiled model's graph writes the gradients of every batch to the same place, and the first batch's would be
    taken from there as they are. Gradients that exist already are added to, so they must not be set to None.
    """
    if not compiler_records(accelerator) or accumulation == 1:
        return False
    allocate_gradients(model)
    return True


def longest(data: Dataset, size: int) -> list[dict]:
    """The `size` longest rows, or all if there are fewer."""
    order = np.argsort(-numbers(data, "length"), kind="stable")[:size]
    return list(data.remove_columns("length").select(order))


def largest(
    accelerator: Accelerator,
    model: torch.nn.Module,
    flag: str,
    sizes: list[int],
    attempt: Callable[[int], None],
) -> int:
    """The first size that fits on all processes; each one tried is at most half of the one before."""
    size, error = sizes[0], None
    while size:
        failure = None
        try:
            attempt(size)
        except Exception as raised:
            if not is_out_of_memory(raised):
                stop_if_refused(raised)
                raise
            failure = str(raised)
        model.zero_grad()
        if failure:
            clear_device_cache(garbage_collection=True)
        fits = torch.tensor([failure is None], device=accelerator.device)
        if bool(accelerator.gather(fits).all()):
            break
        error = failure or error
        size = next((smaller for smaller in sizes if smaller <= size // 2), 0)
    if not size:
        why = f": {error}" if error else ""
        smaller = "use a smaller --max_length, a smaller model or --mixed_precision"
        stop(f"out of memory: not even one row fits; {smaller}{why}", 1)
    if size < sizes[0]:
        often = f"with {sizes[0] // size} times the gradient accumulation, which is the same run"
        same = often if "train" in flag else "which gives the same scores"
        say(f"--{flag} {sizes[0]} does not fit the memory of the device: it is {size}, {same}")
    return size


def stop_if_refused(error: Exception) -> None:
    """End the run with one line if transformers itself refuses to run the model as it is."""
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    if isinstance(error, ValueError) and last.tb_frame.f_globals["__name__"].startswith("transformers."):
        stop(f"transformers refuses to run the model: {error}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that a device has too little memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error):
        return True
    return "DefaultCPUAllocator: not enough memory" in str(error)  # on Windows


def stop_for_memory(error: Exception, args: argparse.Namespace | None) -> NoReturn:
    """End a run that is out of memory, with the command that continues with half the batch."""
    message = f"out of memory: {type(error).__name__}: {error}"
    if args is None:  # in a process that `accelerate launch` started on a TPU
        stop(message, code=1, alone=True)
    rows, accumulation = args.per_device_train_batch_size, GradientState().num_steps
    size = max(rows * args.gradient_accumulation_steps // accumulation, 1)  # what `fit_batches` chose
    if size == args.per_device_eval_batch_size == 1:
        smaller_input = "Take a smaller --max_length, a smaller model or --mixed_precision bf16."
        stop(message, code=1, alone=True, last=f"There is no smaller batch than one row. {smaller_input}")
    smaller = next((part for part in range(size // 2, 0, -1) if size % part == 0), 1)
    half = {
        "per_device_train_batch_size": smaller,
        "gradient_accumulation_steps": accumulation * size // smaller,
        "per_device_eval_batch_size": max(args.per_device_eval_batch_size // 2, 1),
    }
    flags = [word for flag, value in half.items() for word in (f"--{flag}", str(value))]
    saved = checkpoints(Path(args.output_dir)) if args.output_dir else []
    if saved:
        again = f"To go on from {saved[-1].name} with half the batch: {resume_command(*flags, argv=args.argv)}"
    else:
        again = f"There is no checkpoint to go on from; half the batch is {' '.join(flags)}."
    stop(message, code=1, alone=True, last=again)
