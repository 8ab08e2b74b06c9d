"""Run this script in a process in which something was set before: what benchmarks/works.py must see from within.

    python benchmarks/inside.py OUT.json '{"kill": [30, 9]}' [the script's flags]

`exact`: float32 as it is, without TF32 or bf16; `deterministic`: torch's deterministic algorithms; `kill`: after this
optimizer step, send this signal; `scale`: what the fp16 loss scaler begins with; `memory`: the bytes that a GPU has.
OUT.json: optimizer steps that were taken and skipped, the bytes of the GPU at the peak.
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
seen = {"steps": 0, "skipped": 0, "peak": 0}


def prepare(settings: dict[str, Any]) -> None:
    import torch
    from accelerate.optimizer import AcceleratedOptimizer

    if settings.get("exact"):
        torch.set_float32_matmul_precision = lambda _: None
    if settings.get("deterministic"):
        torch.use_deterministic_algorithms(True)
    if "scale" in settings:
        start = torch.amp.GradScaler.__init__
        torch.amp.GradScaler.__init__ = functools.partialmethod(start, init_scale=settings["scale"])
    if "memory" in settings:
        torch.cuda.set_per_process_memory_fraction(settings["memory"] / torch.cuda.mem_get_info()[1])
    plain, kill = AcceleratedOptimizer.step, settings.get("kill")

    def step(self: AcceleratedOptimizer, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        if self.gradient_state.sync_gradients:
            seen["skipped" if self.step_was_skipped else "steps"] += 1
            if kill and seen["steps"] == kill[0]:
                os.kill(os.getpid(), kill[1])

    AcceleratedOptimizer.step = step


def main() -> None:
    out, settings, *flags = sys.argv[1:]
    prepare(json.loads(settings))
    import torch

    import run_glue_no_trainer as script

    try:
        script.main(script.parse_args(flags))
    finally:
        if torch.cuda.is_available():
            seen["peak"] = torch.cuda.max_memory_allocated()
        Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
