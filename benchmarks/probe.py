"""Run a training script as it is and note, from outside, when each step ends and what goes into the model.

    python benchmarks/probe.py OUT.json SCRIPT [the script's flags]

OUT.json: seconds since the process began (`steps`, one per optimizer step), rows, tokens, real tokens and the sum of
squared lengths of each training forward, seconds of tokenization, evaluation and saving and when each of them last
ended, when each batch was there and what it took to fetch and pad it (`fetches`), peak memory in bytes. On a GPU a
step ends when the device has done it, which is learned without waiting for it. Of several processes, each writes its
own: OUT.json.0, OUT.json.1 ...
"""

import functools
import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

BEGAN = psutil.Process().create_time()
seen: dict[str, Any] = {"steps": [], "forwards": [], "fetches": []}
seen |= {"tokenization": 0.0, "evaluation": 0.0, "saving": 0.0}
events: list[Any] = []  # one of the GPU's for each step
loaders: list[Any] = []  # that batches were taken from


def timed(name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        result = function(*args, **options)
        seen[name] += time.perf_counter() - begun
        seen[f"{name} ended"] = time.time() - BEGAN
        return result

    return call


def watch() -> None:
    import datasets
    import torch
    import transformers
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def step_ended(*_: Any) -> None:
        if torch.cuda.is_available():
            if not events:
                torch.cuda.synchronize()
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()
        seen["steps"].append(time.time() - BEGAN)

    def iterate(self: torch.utils.data.DataLoader) -> Any:
        loaders.append(self)
        return plain_iterate(self)

    def fetch(self: Any, rows: list[int]) -> Any:
        begun = time.perf_counter()
        batch = plain_fetch(self, rows)
        seen["fetches"].append((time.time() - BEGAN, time.perf_counter() - begun))
        return batch

    def forward(self: torch.nn.Module, *args: Any, **options: Any) -> Any:
        if not type(getattr(self, "_orig_mod", self)).__name__.endswith("ForSequenceClassification"):
            return plain(self, *args, **options)
        if self.training and not loaders:  # rows that are only tried, for whether they fit the memory
            return plain(self, *args, **options)
        if self.training:
            seen["forwards"].append((options["input_ids"].numel(), options["attention_mask"].sum(1)))
            return plain(self, *args, **options)
        begun = time.perf_counter()
        result = plain(self, *args, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seen["evaluation"] += time.perf_counter() - begun
        return result

    model = transformers.PreTrainedModel
    # of a model that is compiled as a whole: from outside, or the compiler would see the probe
    called = torch._dynamo.OptimizedModule if compiled_whole() else model
    plain = called.__call__
    fetcher = torch.utils.data._utils.fetch._MapDatasetFetcher
    plain_fetch, fetcher.fetch = fetcher.fetch, fetch
    loader = torch.utils.data.DataLoader
    plain_iterate, loader.__iter__ = loader.__iter__, iterate
    called.__call__ = forward
    model.save_pretrained = timed("saving", model.save_pretrained)
    datasets.Dataset.map = timed("tokenization", datasets.Dataset.map)
    register_optimizer_step_post_hook(step_ended)


def compiled_whole() -> bool:
    by_accelerate = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"
    by_layers = os.environ.get("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "false").lower() == "true"
    return "--torch_compile" in sys.argv or (by_accelerate and not by_layers)


def main() -> None:
    out, script, *flags = sys.argv[1:]
    watch()
    sys.argv = [script, *flags]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        import torch

        seen["whole"] = time.time() - BEGAN
        seen["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_available():
            seen["peak_memory"] = torch.cuda.max_memory_allocated()
            torch.cuda.synchronize()
            seen["steps"] = [seen["steps"][0] + events[0].elapsed_time(event) / 1000 for event in events]
        lengths = [mask.tolist() for _, mask in seen["forwards"]]
        seen["forwards"] = [
            {"rows": len(rows), "tokens": tokens, "real": sum(rows), "squares": sum(n * n for n in rows)}
            for (tokens, _), rows in zip(seen["forwards"], lengths, strict=True)
        ]
        rank = os.environ.get("RANK")
        Path(out if rank is None else f"{out}.{rank}").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
