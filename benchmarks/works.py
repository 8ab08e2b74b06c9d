"""What benchmarks/gpu.py sees to work: each case is a function that returns, in words, what it has seen."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed import ROOT

SCRIPT = ROOT / "run_glue_no_trainer.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
CONFIGS = ROOT / "configs" / "accelerate"
COMPILED = [*LAUNCH, CONFIGS / "single_gpu_compiled.yaml"]
LAYERS = [*LAUNCH, CONFIGS / "single_gpu_cuda_graphs.yaml"]
GRAPHS = {"BACKEND": "INDUCTOR", "MODE": "reduce-overhead", "USE_DYNAMIC": "true"}
PATH_TO_ROOT = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
QUICK = ["--config", "configs/quickstart/recipe.yaml"]


class Failed(Exception):
    """A case that did not do what it should; its message is for the table."""


class Late(Failed):
    """A case that took longer than it had."""


class Untried(Failed):
    """A case that could not be tried here."""


def run(command: list[Any], until: float, code: int = 0, cwd: Path = ROOT, **environment: str) -> str:
    """What the process says. It is ended, with all that it started, at `until` of time.monotonic.

    Raises:
        Late: it did not end in time.
        Failed: it ended with another exit code than `code`.
    """
    limit = max(until - time.monotonic(), 0.1)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | environment
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        output = {"stdout": said, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([*map(str, command)], cwd=cwd, env=environment, start_new_session=True, **output)
        try:
            ended = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Late(f"was not done after {limit:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        text = said.read()
    if ended != code:
        raise Failed(f"exit code {ended}: {reason(text)}")
    return text


def reason(text: str) -> str:
    """The line of an error, or the last one."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()] or ["it said nothing"]
    found = [line for line in lines if "error:" in line or "Error:" in line]
    return (found or lines)[-1][-250:]


@dataclass
class Work:
    """What a case works with, and until when it has time, by time.monotonic."""

    model: str
    plain: str  # the same model without dropout
    glue: str | None
    folder: Path
    cuda: bool
    until: float = 0.0

    def flags(self, out: Path, *more: object) -> list[Any]:
        return [*QUICK, "--model_name_or_path", self.model, "--output_dir", out, "--logging_steps", 1, *more]

    def train(self, name: str, *more: object, **environment: str) -> Path:
        """A run of the script with the quick start's data."""
        out = self.folder / name
        run([sys.executable, SCRIPT, *self.flags(out, *more)], self.until, **environment)
        return out

    def inside(
        self, name: str, settings: dict[str, Any], *more: object, code: int = 0, **environment: str
    ) -> tuple[Path, dict]:
        """The same by inside.py, and what that has counted."""
        out, seen = self.folder / name, self.folder / f"{name}.json"
        command = [sys.executable, ROOT / "benchmarks" / "inside.py", seen, json.dumps(settings)]
        deterministic = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        run([*command, *self.flags(out, *more)], self.until, code, **deterministic, **environment)
        return out, json.loads(seen.read_text()) if seen.exists() else {}


def logged(out: Path, what: str = "loss") -> list[float]:
    """The value of `what` for each step that a run has logged."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line[what] for line in lines if "learning_rate" in line]


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "all_results.json").read_text())


def apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def expect(right: bool, what: str) -> str:
    if not right:
        raise Failed(what)
    return what


def weights_apart(one: Path, other: Path) -> str:
    """Whether two runs have left the same bytes or, if not, how far their weights are apart."""
    from safetensors.torch import load_file

    files = [out / "model.safetensors" for out in (one, other)]
    if files[0].read_bytes() == files[1].read_bytes():
        return "the same bytes in model.safetensors"
    first, second = map(load_file, files)
    most = max((first[name].float() - second[name].float()).abs().max().item() for name in first)
    return f"weights at most {most:.1e} apart"


def quick_start(work: Work) -> str:
    found = results(work.train("quick_start"))
    return f"{found['step']} steps, accuracy {found['eval_accuracy']:.3f} (baseline {found['baseline_accuracy']:.3f})"


def precision(work: Work, name: str) -> str:
    out = work.train(f"precision_{name}", "--max_train_steps", 20, "--mixed_precision", name)
    losses = logged(out)
    return f"20 steps, loss {losses[0]:.3f} to {losses[-1]:.3f}"


def fp8(work: Work) -> str:
    out = work.folder / "fp8"
    run([*LAUNCH, CONFIGS / "fp8.yaml", SCRIPT, *work.flags(out, "--max_train_steps", 20)], work.until)
    losses = logged(out)
    return f"20 steps by fp8.yaml, loss {losses[0]:.3f} to {losses[-1]:.3f}"


def skipped_steps(work: Work) -> str:
    """With a loss scale far too large the first steps are skipped until it is halved enough."""
    flags = ["--max_train_steps", 20, "--mixed_precision", "fp16"]
    usual, few = work.inside("skip_few", {}, *flags)
    large, many = work.inside("skip_many", {"scale": 2.0**32}, *flags)
    expect(many["skipped"] > few["skipped"], f"{many['skipped']} steps skipped")
    same = logged(usual, "learning_rate") == logged(large, "learning_rate")
    counted = results(large)["step"] == many["steps"] == 20
    said = f"{many['skipped']} skipped, then {many['steps']} steps, count {results(large)['step']}"
    return expect(same and counted, f"{said}, learning rates {'as without' if same else 'other than without'}")


def launched(work: Work, config: str) -> str:
    out = work.folder / f"launch_{config}"
    more = ["--max_train_steps", 20, "--pad_to_max_length", "--max_length", 32]
    run([*LAUNCH, CONFIGS / f"{config}.yaml", SCRIPT, *work.flags(out, *more)], work.until)
    return f"{results(out)['step']} steps, last loss {logged(out)[-1]:.3f}"


def accelerate_test(work: Work) -> str:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "test", "--config_file"]
    said = run([*command, CONFIGS / "single_gpu.yaml"], work.until)
    return expect("Test is a success" in said, "Accelerate calls it a success")


def stopped_and_resumed(work: Work, number: int, code: int, **environment: str) -> str:
    """A run that is ended by a signal and resumed, beside one that nobody disturbs."""
    settings = {"exact": True, "deterministic": True}
    flags = ["--max_train_steps", 50, "--checkpointing_steps", 10, "--save_total_limit", 2]
    name = f"stopped_{number}_{len(environment)}"
    whole, _ = work.inside(f"{name}_not", settings, *flags, **environment)
    out, _ = work.inside(name, settings | {"kill": [35, number]}, *flags, code=code, **environment)
    saved = max(int(folder.name.removeprefix("step_")) for folder in out.glob("step_*") if folder.name[5:].isdigit())
    work.inside(name, settings, *flags, "--resume_from_checkpoint", "latest", **environment)
    expect(results(out)["step"] == 50, f"ended at step {results(out)['step']}")
    exit_code = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    found = weights_apart(whole, out)
    said = f"{exit_code} at step 35, resumed from step {saved}: {found}"
    return expect(found.startswith("the same") or bool(environment), said)  # a graph may use other kernels at first


def same_for_every_cut(work: Work) -> str:
    settings, flags = {"exact": True}, ["--model_name_or_path", work.plain, "--max_train_steps", 50]
    flags += ["--mixed_precision", "no"]
    one, _ = work.inside("cut_1x32", settings, *flags, "--per_device_train_batch_size", 32)
    cut = ["--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 4]
    four, _ = work.inside("cut_1x8x4", settings, *flags, *cut)
    most = apart(logged(one), logged(four))
    return expect(most <= 1e-5, f"1 x 32 and 1 x 8 x 4: losses of 50 steps at most {most:.1e} apart")


def out_of_memory(work: Work) -> str:
    """A batch of all rows, with two thirds of the memory that it takes."""
    flags = ["--model_name_or_path", work.plain, "--max_train_steps", 5, "--per_device_train_batch_size", 320]
    flags += ["--mixed_precision", "no"]
    fits, seen = work.inside("memory_fits", {"exact": True}, *flags)
    halved, less = work.inside("memory_halved", {"exact": True, "memory": seen["peak"] * 2 // 3}, *flags)
    most = apart(logged(fits), logged(halved))
    said = f"peak {seen['peak'] / 1e6:,.0f} MB; with two thirds of it {less['peak'] / 1e6:,.0f} MB"
    return expect(most <= 1e-4, f"{said}, losses of 5 steps at most {most:.1e} apart")


def compiled(work: Work, accumulation: int, mode: str = "default", regional: bool = False) -> str:
    """Compiled beside eager, in fp32 without dropout: the losses of 20 steps."""
    flags = ["--model_name_or_path", work.plain, "--max_train_steps", 20, "--mixed_precision", "no"]
    flags += ["--per_device_train_batch_size", 16 // accumulation, "--gradient_accumulation_steps", accumulation]
    name = f"compiled_{accumulation}_{mode}_{regional}"
    eager = work.train(f"{name}_not", *flags)
    dynamo = {"BACKEND": "INDUCTOR", "MODE": mode, "USE_DYNAMIC": "true", "USE_REGIONAL_COMPILATION": str(regional)}
    fast = work.train(name, *flags, **{f"ACCELERATE_DYNAMO_{key}": value for key, value in dynamo.items()})
    most = apart(logged(eager), logged(fast))
    return expect(most <= 2e-2, f"losses of 20 steps at most {most:.1e} from eager's")


def edited(patch: Path, folder: Path) -> Path:
    """The script in this folder, with the patch applied; it needs `PATH_TO_ROOT` to run there."""
    folder.mkdir(parents=True)
    script = Path(shutil.copy(SCRIPT, folder))
    tool = ["git", "apply", patch] if shutil.which("git") else ["patch", "-p1", "-i", patch]
    run(tool, time.monotonic() + 10, cwd=folder)
    return script


def edit(work: Work, patch: Path) -> str:
    folder = work.folder / "edits" / patch.stem
    script = edited(patch, folder)
    teacher = work.model
    if "TEACHER" in script.read_text():  # a model with the same classes
        teacher = str(work.train("teacher", "--max_train_steps", 3))
    flags = work.flags(folder / "out", "--max_train_steps", 3)
    run([sys.executable, script, *flags], work.until, **PATH_TO_ROOT, TEACHER=teacher)
    losses = [loss for log in sorted(folder.glob("out/**/log.jsonl")) for loss in logged(log.parent)]
    return f"{len(losses)} steps, last loss {losses[-1]:.3f}"


def train_mrpc(work: Work, name: str, model: str, command: list[Any], *more: object) -> Path:
    if not work.glue:
        raise Untried("left out: no --glue")
    out = work.folder / f"mrpc_{name}"
    flags = ["--config", "configs/recipes/mrpc.yaml", "--model_name_or_path", model, "--dataset_name", work.glue]
    run([*command, SCRIPT, *flags, "--output_dir", out, *more], work.until)
    return out


def mrpc(work: Work, name: str, command: list[Any], *more: object) -> str:
    found = results(train_mrpc(work, name, work.model, command, *more))
    return f"{found['step']} steps, accuracy {found['eval_accuracy']:.3f}, F1 {found['eval_f1']:.3f}"


def noise(work: Work) -> str:
    """The losses of 200 steps of MRPC without dropout: how far from those in fp32, eager and compiled."""
    more = ["--logging_steps", 1, "--max_train_steps", 200]
    plain = [sys.executable]
    exact = logged(train_mrpc(work, "exact", work.plain, plain, *more, "--mixed_precision", "no"))
    eager = logged(train_mrpc(work, "eager", work.plain, plain, *more, "--mixed_precision", "bf16"))
    fast = logged(train_mrpc(work, "fast", work.plain, LAYERS, *more))
    means = [sum(abs(a - b) for a, b in zip(losses, exact, strict=True)) / 200 for losses in (eager, fast)]
    said = "losses of 200 steps in bf16, mean distance from fp32: eager {:.1e}, compiled {:.1e}".format(*means)
    return expect(means[1] <= 2 * means[0], said)


def cases(few: bool) -> dict[str, tuple[Callable[..., str], bool]]:
    """What is seen to work, the most worth first, and whether it takes a CUDA device; `few`: some of them."""
    case: dict[str, tuple[Callable[..., str], bool]] = {
        "quick start": (quick_start, False),
        "bf16": (lambda work: precision(work, "bf16"), False),
        "fp16": (lambda work: precision(work, "fp16"), True),
        "fp16, steps that the scaler skips": (skipped_steps, True),
        "1 x 32 and 1 x 8 x 4": (same_for_every_cut, False),
        "kill -9, resumed": (lambda work: stopped_and_resumed(work, signal.SIGKILL, -signal.SIGKILL), False),
        "SIGTERM, resumed": (lambda work: stopped_and_resumed(work, signal.SIGTERM, 128 + signal.SIGTERM), False),
        "out of memory": (out_of_memory, True),
        "MRPC, bf16": (lambda work: mrpc(work, "bf16", [sys.executable], "--mixed_precision", "bf16"), False),
        "MRPC, fp32": (lambda work: mrpc(work, "no", [sys.executable], "--mixed_precision", "no"), False),
        "MRPC, compiled by layers": (lambda work: mrpc(work, "compiled", LAYERS), True),
        "MRPC, losses compiled by layers": (noise, True),
    }
    for config in ("single_gpu", "single_gpu_cuda_graphs", "single_gpu_compiled"):
        needs_gpu = config == "single_gpu_compiled"
        case[f"accelerate launch, {config}.yaml"] = (lambda work, c=config: launched(work, c)), needs_gpu
    graphs = {f"ACCELERATE_DYNAMO_{key}": value for key, value in GRAPHS.items()}
    case["kill -9, resumed, CUDA graphs"] = (
        lambda work: stopped_and_resumed(work, signal.SIGKILL, -signal.SIGKILL, **graphs),
        True,
    )
    for accumulation in (1, 4):
        of = f", {accumulation} x {16 // accumulation} rows"
        case[f"compiled{of}"] = (lambda work, a=accumulation: compiled(work, a)), True
        case[f"compiled by layers{of}"] = (lambda work, a=accumulation: compiled(work, a, regional=True)), True
        case[f"CUDA graphs{of}"] = (lambda work, a=accumulation: compiled(work, a, "reduce-overhead")), True
    case["fp32"] = (lambda work: precision(work, "no")), False
    case["fp8"] = fp8, True
    case["accelerate test"] = accelerate_test, False
    for patch in sorted((ROOT / "examples" / "edits").glob("*.patch")):
        case[f"edit: {patch.stem}"] = (lambda work, p=patch: edit(work, p)), False
    if few:
        of_a_kind = ["fp16", "fp32", "edit: label_smoothing"]
        case = {name: case[name] for name in of_a_kind}
    return case
