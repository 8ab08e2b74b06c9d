"""Devices and processes: what Accelerate is told, what one process does for all, and what is shown to people."""

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
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, LoggerType
from safetensors import SafetensorError
from torch.nn import functional as F
from tqdm.auto import tqdm

from no_trainer.messages import LAUNCHERS, STARTING, count, show, stop, suggestion


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """The devices, the precision and the processes, as the launcher or the flags say."""
    imports_are_done()
    for name in (*LAUNCHERS, "LOCAL_RANK", *LAUNCHERS.values()):
        if not re.fullmatch("[0-9]*", value := os.environ.get(name, "")):
            stop(f"{name} in the environment is {value!r}, not a number, as a launcher would set it; unset it")
    check_tracker(args.report_to, needed=args.with_tracking)
    # several processes on a machine without an accelerator are one run only if Accelerate is told that it is a CPU run
    no_accelerator = not (torch.accelerator.is_available() or accelerate.utils.is_torch_xla_available())
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"  # says `accelerate launch`
    try:
        PartialState(cpu=no_accelerator)
        accelerator = Accelerator(
            # the plug-in, for DeepSpeed's configuration would win over the number
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.gradient_accumulation_steps),
            mixed_precision=args.mixed_precision,
            cpu=no_accelerator and not deepspeed,  # which Accelerate would not start in a CPU run
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            # DDP would sort its buckets anew after the first step, also the first after a resume: other rounding
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=no_accelerator)],
            log_with=args.report_to if args.with_tracking else None,
            project_dir=args.output_dir,
        )
    except (ValueError, ImportError, RuntimeError, AssertionError) as error:  # a precision that this machine has not
        one_machine = "; on one machine that is 127.0.0.1" if "MASTER_ADDR" in str(error) else ""  # mpirun alone
        named = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
        given = "; in the environment: " + ", ".join(f"{n}={v}" for n, v in named.items()) if named else ""
        stop(f"Accelerate cannot start: {error}{one_machine}{given}")
    if torch.distributed.is_initialized():
        atexit.register(PartialState().destroy_process_group)
        # kept to the end: were DDP's the last hold on it, letting it go would wait for gloo's threads, while they may
        # wait for Python, which that holds up (https://github.com/pytorch/pytorch/issues/56297)
        accelerator.state.process_group = torch.distributed.group.WORLD
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 in the matrix products that are not in mixed precision
    if deepspeed:  # it accumulates and clips itself
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "gradient_clipping": args.max_grad_norm,
        }
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        stop("--mixed_precision fp16 needs a GPU; on a CPU take bf16 or no")
    check_processes(accelerator.num_processes)
    quieten_libraries(bars=accelerator.is_main_process and sys.stderr.isatty())
    return accelerator


def imports_are_done() -> None:
    """Collect garbage again, but not among what the imports made: a seventh of the time of tokenizing."""
    STARTING.close()
    gc.freeze()
    gc.enable()


def check_tracker(name: str, needed: bool) -> None:
    """Whether --report_to names a tracker, and one that is installed if it is `needed`."""
    known, installed = LoggerType.list(), [str(tracker) for tracker in get_available_trackers()]
    if name not in known:
        stop(f"--report_to {name}: takes one of {', '.join(known)}{suggestion(name, known)}")
    if needed and (name not in ("all", *installed) or not installed):
        missing = "tensorboard" if name == "all" else name
        stop(f"--report_to {name}: not installed; pip install {missing} brings it")


def check_processes(processes: int) -> None:
    """Whether all processes that the launcher started are in one run."""
    for name in LAUNCHERS:
        if (started := count(name)) > processes:
            stop(
                f"{name} says that {started} processes were started, but each of them would train alone. To make one "
                f"run of them: `accelerate launch --multi_gpu --num_processes {started}` or `torchrun "
                f"--nproc_per_node {started}`, on CPUs with ACCELERATE_USE_CPU=true; for {started} runs: unset {name}"
            )


def quieten_libraries(bars: bool) -> None:
    """What they say is said here, or of no use; `bars` leaves those of datasets."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.utils.logging.set_verbosity_error()
    if not bars:
        datasets.disable_progress_bars()


def tune_cpu() -> None:
    """Make a step on a CPU up to twice as fast; the figure of each line is in benchmarks/README.md."""
    F.dropout = dropout
    # oneDNN keeps what it has built for each shape of a product: let these be some more than one step has
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    if "AuthenticAMD" in cpu and "amx_" not in cpu:
        # MKL multiplies without AMD's AVX-512, on Zen 5 at half its speed. So oneDNN shall: it may take bf16 for it,
        # which it does with Intel's matrix units (AMX) alone; without them the products are those of fp32
        torch.set_float32_matmul_precision("medium")
    if platform.libc_ver()[0] == "glibc":  # malloc shall keep what a step frees for the next one
        malloc = ctypes.CDLL(None)
        malloc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back
        malloc.mallopt(-4, 0)  # M_MMAP_MAX: nor ask for a large block on its own, to give it back when it is freed


def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """`torch.nn.functional.dropout` at a third of its time on the CPU: four 16-bit random numbers at a draw, not one.

    `p` is rounded to 1/65536. The numbers come from torch's default generator, as they do there.
    """
    if not training or p == 0:
        return x
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 65536) - 32768
    return x * keep.to(x.dtype).mul_(1 / (1 - p) if p < 1 else 0.0)


def all_or_none(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Let every process `work`; if one of them stops, having said why, all stop."""
    code, result = 0, None
    try:
        result = work()
    except SystemExit as stopped:
        code = stopped.code
    if code := int(accelerator.gather(torch.tensor([code], device=accelerator.device)).max()):
        sys.exit(code)
    return result


def one_first(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Let one process of each machine `work`, and then the others, who find what it has put into the cache."""
    first = accelerator.is_local_main_process
    result = all_or_none(accelerator, lambda: work() if first else None)
    return result if first else work()


def together(accelerator: Accelerator, write: Callable[[], object], target: Path, needed: bool = True) -> bool:
    """Let every process `write` its part of `target`; returns whether all could.

    Where one cannot, all end, with exit code 1; if it is not `needed`, a warning says so.
    """
    failure = None
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        of_writing = re.search(r"os error|I/O error|PytorchStreamWriter|inline_container", str(error))
        if not isinstance(error, OSError) and not of_writing:
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        if not isinstance(error, OSError) and target.parent.exists():  # torch.save does not say why
            full = full or shutil.disk_usage(target.parent).free < 1 << 20
        failure = f"the disk is full ({error})" if full else str(error)
    said = torch.tensor([list((failure or "").encode()[:1000].ljust(1000))], device=accelerator.device)
    failures = [bytes(row).decode(errors="ignore").strip() for row in accelerator.gather(said).tolist()]
    if failures := [text for text in failures if text]:
        if target.name.endswith(".partial"):
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
        if needed:
            stop(f"{target} could not be written: {failures[0]}.", code=1)
        say(f"warning: {target} could not be written: {failures[0]}")
    return not failures


def say(text: str) -> None:
    """Print above the progress bar, once for all processes. Control characters are shown as escapes."""
    if not PartialState().is_main_process or sys.stdout is None:  # it was closed before Python began
        return
    try:
        tqdm.write("\n".join(map(show, text.split("\n"))))
        sys.stdout.flush()
    except (OSError, ValueError):  # nobody reads on (`| head`, Ctrl-C to `| tee`), the disk is full, it was closed
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def optional(what: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; where it fails, which ends no run, a warning says so."""
    try:
        return work()
    except Exception as error:
        say(f"warning: {what}: {type(error).__name__}: {error}")
        return None


def progress_bar(what: str, **options: Any) -> tqdm:
    """A bar for people: at a terminal, of one process; `options` are tqdm's."""
    # None: where there is no terminal
    disable = None if PartialState().is_main_process and options.get("total") != 0 else True
    return tqdm(desc=what, dynamic_ncols=True, disable=disable, **options)


def hardware(accelerator: Accelerator) -> str:
    """What the run is on, in words."""
    device = f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name()
    elif accelerator.device.type != "cpu":
        device = accelerator.device.type
    return f"{accelerator.num_processes} × {device}"
