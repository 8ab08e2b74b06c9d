"""Devices and processes: starting Accelerate, work shared by processes, a faster CPU, printing."""

import argparse
import atexit
import contextlib
import ctypes
import errno
import gc
import logging
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import datasets
import huggingface_hub
import torch
import transformers
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, LoggerType
from safetensors import SafetensorError
from torch.nn import functional as F
from tqdm.auto import tqdm

from no_trainer.messages import LAUNCHERS, STARTING, count, show_lines, stop, suggestion


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """Accelerate, with the devices, processes and precision of the launcher and the flags."""
    imports_are_done()
    for name in (*LAUNCHERS, "LOCAL_RANK", *LAUNCHERS.values()):
        if not re.fullmatch("[0-9]*", value := os.environ.get(name, "")):
            stop(f"{name} in the environment is {value!r}, not a number, as a launcher would set it; unset it")
    if (address := os.environ.get("MASTER_ADDR")) and os.environ.get("WORLD_SIZE") == "1":
        try:  # torch would retry for half an hour; of several machines, one may only start late
            socket.getaddrinfo(address, None)
        except OSError:
            stop(f"MASTER_ADDR in the environment is {address!r}: there is no such machine; for one process, unset it")
    check_tracker(args.report_to, needed=args.with_tracking)
    # without a GPU, Accelerate joins several processes into one run only with cpu=True
    no_accelerator = not (torch.accelerator.is_available() or accelerate.utils.is_torch_xla_available())
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"  # set by `accelerate launch`
    accumulation = args.gradient_accumulation_steps
    try:
        if not torch.distributed.is_initialized():  # a second run in a notebook has a precision of its own
            AcceleratorState._reset_state()
        PartialState(cpu=no_accelerator)
        accelerator = Accelerator(
            # as a plug-in, since DeepSpeed's configuration would override a plain number
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
            mixed_precision=args.mixed_precision,
            cpu=no_accelerator and not deepspeed,  # cpu=True would keep DeepSpeed from starting
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            # otherwise DDP rebuilds its buckets after its first step: a resumed run would round differently
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=no_accelerator)],
            log_with=args.report_to if args.with_tracking else None,
            project_dir=args.output_dir,
        )
        torch.zeros(1, device=accelerator.device).item()
    # such as a precision or a device that this machine does not have
    except (ValueError, ImportError, RuntimeError, AssertionError) as error:
        mpirun_alone = "MASTER_ADDR" in str(error)
        hint = "; on one machine, set it to 127.0.0.1" * mpirun_alone
        named = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("ACCELERATE_")]
        given = f"; the environment has {', '.join(named)}" if named else ""
        stop(f"Accelerate cannot start: {error}{hint}{given}")
    if torch.distributed.is_initialized():
        atexit.register(PartialState().destroy_process_group)
        # keep a reference: when DDP drops the last one, it waits for gloo's threads, which may wait for
        # Python's lock, which DDP holds (https://github.com/pytorch/pytorch/issues/56297)
        accelerator.state.process_group = torch.distributed.group.WORLD
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 in matrix products of fp32
    if deepspeed:  # it accumulates and clips gradients itself
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": args.max_grad_norm,
        }
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        stop("--mixed_precision fp16 needs a GPU; on a CPU use bf16 or no")
    check_processes(accelerator.num_processes)
    quieten_libraries(bars=accelerator.is_main_process and sys.stderr.isatty())
    return accelerator


def imports_are_done() -> None:
    """Enable garbage collection, but not for what the imports made: tokenizing is a seventh faster."""
    STARTING.close()
    gc.freeze()
    gc.enable()


def check_tracker(name: str, needed: bool) -> None:
    """Check that --report_to names a tracker and, if it is `needed`, that it is installed."""
    known, installed = LoggerType.list(), [str(tracker) for tracker in get_available_trackers()]
    if name not in known:
        stop(f"--report_to {name}: takes one of {', '.join(known)}{suggestion(name, known)}")
    if needed and (name not in ("all", *installed) or not installed):
        missing = "tensorboard" if name == "all" else name
        stop(f"--report_to {name}: not installed; pip install {missing} brings it")


def check_processes(processes: int) -> None:
    """Check that all processes that the launcher started are in one run."""
    for name in LAUNCHERS:
        if (started := count(name)) > processes:
            accelerate_launch = f"`accelerate launch --multi_gpu --num_processes {started}`"
            one_run = f"{accelerate_launch} or `torchrun --nproc_per_node {started}`"
            stop(
                f"{name} says that {started} processes were started, but each of them would train alone. "
                f"To make one run of them: {one_run}, on CPUs with ACCELERATE_USE_CPU=true; "
                f"for {started} separate runs: unset {name}"
            )


def quieten_libraries(bars: bool) -> None:
    """Silence messages that the script replaces or nobody needs; `bars` keeps those of datasets."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.utils.logging.set_verbosity_error()
    if not bars:
        datasets.disable_progress_bars()


def tune_cpu() -> None:
    """Make a step on a CPU up to twice as fast; benchmarks/README.md says what each line gains."""
    F.dropout = dropout
    # oneDNN caches a kernel for each shape; one step needs fewer than these
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    if "AuthenticAMD" in cpu and "amx_" not in cpu:
        # use oneDNN, since MKL has no AVX-512 on AMD, which halves the speed on Zen 5. "medium" allows
        # oneDNN to compute in bf16, but it does so only on CPUs with AMX: here it stays with fp32
        torch.set_float32_matmul_precision("medium")
    if platform.libc_ver()[0] == "glibc":  # let malloc keep freed memory for the next step
        malloc = ctypes.CDLL(None)
        malloc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never return memory to the system
        malloc.mallopt(-4, 0)  # M_MMAP_MAX: no separate large blocks, which are returned when freed


def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.dropout` in a third of the time on a CPU: four numbers for each draw.

    `p` is rounded to 1/65536. As in torch, the numbers come from the default generator.
    """
    if torch.compiler.is_compiling():  # a compiler fuses torch's own with what is around it
        return torch.dropout(x, p, training)
    if not training or p == 0:
        return x
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 65536) - 32768
    return x * keep.to(x.dtype).mul_(1 / (1 - p) if p < 1 else 0.0)


def all_or_none(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Run `work` in every process and return its result; if it stops one of them, all stop."""
    code, result = 0, None
    try:
        result = work()
    except SystemExit as stopped:
        code = stopped.code
    if code := int(accelerator.gather(torch.tensor([code], device=accelerator.device)).max()):
        sys.exit(code)
    return result


def one_first(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Run `work` in one process of each machine, then in the others, which find a filled cache."""
    first = accelerator.is_local_main_process
    result = all_or_none(accelerator, lambda: work() if first else None)
    return result if first else work()


def together(accelerator: Accelerator, write: Callable[[], object], target: Path, needed: bool = True) -> bool:
    """Let every process `write` its part of `target`, and return whether all succeeded.

    If one fails, the run ends with exit code 1 or, if `target` is not `needed`, prints a warning.
    """
    failure = None
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        of_writing = re.search(r"os error|I/O error|PytorchStreamWriter|inline_container", str(error))
        if not isinstance(error, OSError) and not of_writing:
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        if not isinstance(error, OSError) and target.parent.exists():  # torch.save gives no reason
            full = full or shutil.disk_usage(target.parent).free < 1 << 20
        failure = f"the disk is full ({error})" if full else str(error)
    said = (failure or "").encode()[:1000].ljust(1000)
    rows = accelerator.gather(torch.tensor([list(said)], device=accelerator.device)).tolist()
    failures = [bytes(row).decode(errors="ignore").strip() for row in rows]
    if failures := [text for text in failures if text]:
        if target.name.endswith(".partial"):
            if target.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            else:
                target.unlink(missing_ok=True)
        if needed:
            stop(f"{target} could not be written: {failures[0]}.", code=1)
        say(f"warning: {target} could not be written: {failures[0]}")
    return not failures


def say(text: str) -> None:
    """Print above the progress bar, in one process only, with escapes for control characters."""
    if not PartialState().is_main_process or sys.stdout is None:  # closed before Python began
        return
    try:
        tqdm.write(show_lines(text))
        sys.stdout.flush()
    except (OSError, ValueError):  # closed, a full disk, or a reader that is gone (`| head`)
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def optional(what: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result of `work` with these arguments; if it fails, None, and a warning instead of an error."""
    try:
        return work(*args, **options)
    except Exception as error:
        say(f"warning: {what}: {type(error).__name__}: {error}")
        return None


def progress_bar(what: str, **options: Any) -> tqdm:
    """A progress bar, shown by the first process in a terminal; `options` are tqdm's."""
    wanted = PartialState().is_main_process and options.get("total") != 0
    disable = None if wanted else True  # None lets tqdm look for a terminal
    return tqdm(desc=what, dynamic_ncols=True, disable=disable, **options)


def hardware(accelerator: Accelerator) -> str:
    """The devices of the run, such as `2 × NVIDIA H100 80GB HBM3`."""
    device = f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name()
    elif accelerator.device.type != "cpu":
        device = accelerator.device.type
    return f"{accelerator.num_processes} × {device}"
