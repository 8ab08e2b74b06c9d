"""Training on a CUDA device, and recorded as CUDA graphs. Most of it needs such a device."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from conftest import ROOT, log_lines
from test_edits import no_dropout, run_edited  # noqa: F401 (fixtures)

from no_trainer.graphs import recorded

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STEPS = ["--max_train_steps", 20, "--logging_steps", 1, "--learning_rate", 1e-3]


def logged(folder: Path, what: str = "loss") -> list[float]:
    """Of each step."""
    return [line[what] for line in log_lines(folder) if "learning_rate" in line]


@GPU
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("rows", "accumulation"), [(8, 1), (2, 4)])
def test_recorded_steps_are_eager_ones(
    run: Callable,
    run_edited: Callable,  # noqa: F811
    own_files: list,
    no_dropout: Path,  # noqa: F811
    tmp_path: Path,
    precision: str,
    rows: int,
    accumulation: int,
) -> None:
    flags = [*own_files, *STEPS, "--model_name_or_path", no_dropout, "--mixed_precision", precision]
    flags += ["--per_device_train_batch_size", rows, "--gradient_accumulation_steps", accumulation]
    run(*flags, "--output_dir", tmp_path / "eager")
    run_edited("cuda_graphs", *flags, "--output_dir", tmp_path / "graphs")
    eager, graphs = logged(tmp_path / "eager"), logged(tmp_path / "graphs")
    assert graphs == pytest.approx(eager, abs=1e-4 if precision == "no" else 2e-2)
    assert len(set(graphs)) > 10  # not the same recording of the same inputs; in bf16 some losses are equal
    rates = [logged(tmp_path / name, "learning_rate") for name in ("eager", "graphs")]
    assert rates[1] == pytest.approx(rates[0], rel=1e-6)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ({"device": torch.device("cpu")}, "there is no CUDA device"),
        ({"num_processes": 2}, "there are several processes"),
        ({"mixed_precision": "fp16"}, "fp16 asks the device after each step whether to skip it"),
        ({"mixed_precision": "fp8"}, "fp8 was not tried"),
        ({"mode": "reduce-overhead"}, "the compiler records the model"),
    ],
)
def test_where_it_cannot_be_recorded_the_step_stays_as_it_is(
    where: dict, why: str, capsys: pytest.CaptureFixture
) -> None:
    PartialState()
    usual = {"device": torch.device("cuda"), "num_processes": 1, "mixed_precision": "bf16", "mode": "default"} | where
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(mode=usual.pop("mode")))
    accelerator, model = SimpleNamespace(state=state, **usual), torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert recorded(accelerator, model, optimizer)(logged) is logged
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["capturable"]) == (1e-3, False)
    assert capsys.readouterr().out == f"the training step is not recorded as a CUDA graph: {why}\n"


ASKS_THE_DEVICE = """
import torch
from accelerate import Accelerator
from no_trainer.graphs import recorded

accelerator, model = Accelerator(), torch.nn.Linear(2, 2).cuda()
optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters(), lr=1e-3))

@recorded(accelerator, model, optimizer)
def train_step(batch):
    return (batch["x"] * batch["x"].sum().item(),)

for _ in range(2):
    train_step({"x": torch.ones(3, device="cuda")})
    print("a step")
"""


@GPU
def test_a_step_that_asks_the_device_cannot_be_recorded() -> None:
    """In a process of its own, as torch does not recover from a recording that failed."""
    ended = subprocess.run([sys.executable, "-c", ASKS_THE_DEVICE], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "a step\n")
    assert "cannot be recorded as a CUDA graph" in ended.stderr


@GPU
def test_recorded_dropout_differs_from_step_to_step(
    run_edited: Callable,  # noqa: F811
    own_files: list,
    tmp_path: Path,
) -> None:
    """At a rate of 0 and with one batch for all steps, the losses differ by dropout alone."""
    flags = [*own_files, *STEPS, "--learning_rate", 0, "--per_device_train_batch_size", 61, "--pad_to_max_length"]
    run_edited("cuda_graphs", *flags, "--max_length", 32, "--output_dir", tmp_path)
    assert len(set(logged(tmp_path))) == 20


@GPU
def test_steps_that_the_fp16_scaler_skips_do_not_count(
    run: Callable, own_files: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*own_files, *STEPS, "--mixed_precision", "fp16"]
    run(*flags, "--output_dir", tmp_path / "usual")
    start = torch.amp.GradScaler.__init__
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", functools.partialmethod(start, init_scale=2.0**40))
    results = run(*flags, "--output_dir", tmp_path / "skipped")
    assert results["step"] == 20
    assert logged(tmp_path / "usual", "learning_rate") == logged(tmp_path / "skipped", "learning_rate")
