"""What a GPU needs for the training step of the edit cuda_graphs, without the script around it.

    python benchmarks/replay.py --layers

Trains BERT-base's shape on rows as long as MNLI's, 32 a step, in bf16, as benchmarks/gpu.py does, but on batches that
are on the device already: what is timed is the recorded step. Prints the milliseconds a step, those at some lengths,
and the kernels of a step by what they do. With --layers, the layers are compiled first. On a CPU the same code runs
without recording; its figures say nothing.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin
from gpu import BATCH, SHAPES, draw_lengths, make_model, versions
from speed import ROOT, table
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification

sys.path.append(str(ROOT))
import run_glue_no_trainer as script
from no_trainer.batches import GlobalBatchSampler
from no_trainer.graphs import recorded
from no_trainer.launch import quieten_libraries

GPU = torch.cuda.is_available()
# by the names of the kernels, the first that fits
KINDS = {
    "compiled": r"^triton",
    "attention": r"fmha|flash|attention",
    "products of matrices": r"gemm|nvjet|cutlass|splitK|cublas|addmm|aten::mm",
    "AdamW": r"FusedAdam|_fused_adamw",
    "clipping": r"LpNorm|multi_tensor_apply|_foreach",
    "others": r"",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", action="store_true", help="compile the layers first")
    parser.add_argument("--shape", choices=["bert-base", "tiny"], default="bert-base")
    parser.add_argument("--steps", type=int, default=300)
    return parser.parse_args()


def make_step(accelerator: Accelerator, folder: Path) -> Callable[[dict], tuple[torch.Tensor, ...]]:
    """The step of the edit, for a model with random weights."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).train()
    optimizer = torch.optim.AdamW(script.parameter_groups(model, 0.0), lr=5e-5, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)

    @recorded(accelerator, model, optimizer)
    def train_step(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        loss = model(**batch).loss
        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss, grad_norm

    return train_step


def make_batch(rows: np.ndarray, words: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random tokens for rows of these lengths, padded to a multiple of 8."""
    longest = -(-int(rows.max()) // 8) * 8
    mask = (torch.arange(longest) < torch.from_numpy(rows)[:, None]).long()
    batch = {"input_ids": torch.randint(5, words, mask.shape) * mask, "token_type_ids": torch.zeros_like(mask)}
    batch |= {"attention_mask": mask, "labels": torch.randint(3, (len(rows),))}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def timed(step: Callable, batches: list[dict]) -> float:
    """Milliseconds a step."""
    begun = time.perf_counter()
    for batch in batches:
        step(batch)
    if GPU:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun) / len(batches)


def kernels(step: Callable, batch: dict[str, torch.Tensor], times: int = 5) -> list[dict]:
    """How many kernels a step has and how long they take, by kind."""
    with profile(activities=[ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU], acc_events=True) as seen:
        timed(step, [batch] * times)
    counts, spent = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    for event in seen.key_averages():
        kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, event.key, re.IGNORECASE))
        counts[kind] += event.count / times
        spent[kind] += (event.self_device_time_total if GPU else event.self_cpu_time_total) / times / 1000
    rows = [{"what": kind, "kernels": counts[kind], "ms": spent[kind]} for kind in KINDS]
    return [*rows, {"what": "all", "kernels": sum(counts.values()), "ms": sum(spent.values())}]


def main() -> None:
    args = parse_args()
    quieten_libraries(bars=False)
    print(f"{versions()}, {' '.join(sys.argv[1:])}")
    settings = {"backend": "inductor", "dynamic": True, "use_regional_compilation": True} if args.layers else {}
    accelerator = Accelerator(mixed_precision="bf16", dynamo_plugin=TorchDynamoPlugin(**settings))
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(accelerator, Path(make_model(Path(folder), args.shape)))
    words = SHAPES[args.shape][0]
    lengths = draw_lengths(np.random.default_rng(0), args.steps * BATCH)
    sampler = GlobalBatchSampler(len(lengths), BATCH, BATCH, 0, lengths)
    batches = [make_batch(lengths[rows], words, accelerator.device) for rows in sampler]
    for _ in range(2):  # the first batch of a shape runs as usual, the second is recorded
        timed(step, batches)
    rounds = [timed(step, batches) for _ in range(3)]
    padded = np.mean([batch["input_ids"].numel() for batch in batches])
    print(f"{padded:.0f} tokens a step, {1 - lengths.sum() / len(batches) / padded:.2f} of them padding\n")
    rows = [{"lengths": "those of MNLI", "ms a step": statistics.median(rounds)}]
    for length in (32, 48, 64, 128):
        alike = [make_batch(np.full(BATCH, length), words, accelerator.device)] * 20
        timed(step, alike[:2])
        rows.append({"lengths": str(length), "ms a step": timed(step, alike)})
    print(f"{table(rows, ['lengths', 'ms a step'])}\n")
    print(table(kernels(step, batches[0]), ["what", "kernels", "ms"]))


if __name__ == "__main__":
    main()
