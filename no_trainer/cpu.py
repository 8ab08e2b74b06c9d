"""What makes a step on a CPU up to twice as fast; the figure of each line is in benchmarks/README.md."""

import ctypes
import os
import platform
import sys
from pathlib import Path

import torch
from torch.nn import functional as F


def tune_cpu() -> None:
    """Exchange torch's dropout for a faster one, and tell the libraries below it how to multiply and keep memory."""
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
