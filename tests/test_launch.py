"""Devices and processes: a faster CPU, and the ways in: python, accelerate launch, torchrun, one process and two."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, TORCHRUN, fresh_accelerate, launch, log_lines, without_dropout, write_csv
from transformers import AutoModelForSequenceClassification

import run_glue_no_trainer as script
from no_trainer.launch import dropout, start_accelerator, together


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_precision_that_is_not_to_be_had_is_named(
    run: Callable, own_files: list, capsys: pytest.CaptureFixture, precision: str
) -> None:
    """Accelerate itself would train in fp32 on a CPU where fp16 is asked for, and say nothing."""
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, which may know fp16 and fp8")
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--mixed_precision", precision)
    assert exit_.value.code == 2
    assert precision in capsys.readouterr().err.lower()


def test_what_could_not_be_written_is_not_left_half_written(tmp_path: Path) -> None:
    fresh_accelerate()

    def write() -> None:
        (tmp_path / ".best.partial").write_bytes(b"half")
        raise OSError("no more")

    with pytest.raises(SystemExit) as exit_:
        together(Accelerator(cpu=True), write, tmp_path / ".best.partial")
    assert exit_.value.code == 1
    assert not list(tmp_path.iterdir())


# --- a faster CPU


def test_dropout_on_the_cpu_is_dropout() -> None:
    """Against the definition: a share p of zeros, the rest 1 / (1 - p) times as large, gradients likewise."""
    for p in (0.1, 0.5):
        x = torch.full((1000, 1001), 3.0, requires_grad=True)
        torch.manual_seed(0)
        y = dropout(x, p)
        y.sum().backward()
        kept = y != 0
        assert abs(kept.float().mean().item() - (1 - p)) < 0.002  # four standard deviations at a million draws
        assert torch.allclose(y[kept], torch.tensor(3 / (1 - p)))
        assert torch.equal(x.grad, y.detach() / 3)
        neighbours = (kept[:, :-1] == kept[:, 1:]).float().mean().item()  # bits of one draw are independent
        assert abs(neighbours - (p**2 + (1 - p) ** 2)) < 0.002
        torch.manual_seed(0)
        assert torch.equal(dropout(x, p), y)
    x = torch.ones(3, 5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert dropout(x, 1.0).count_nonzero() == 0
    assert dropout(x.bfloat16(), 0.5).dtype == torch.bfloat16
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)


def test_a_compiler_sees_torchs_own_dropout() -> None:
    """One graph, for ours cannot be traced."""
    compiled = torch.compile(dropout, backend="eager", fullgraph=True)
    dropped = compiled(torch.ones(1000), 0.5)
    assert set(dropped.tolist()) == {0.0, 2.0}
    assert compiled(torch.ones(10), 0.5, training=False).tolist() == [1.0] * 10


def test_a_models_dropout_on_the_cpu_is_the_fast_one(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, own_files: list, run: object
) -> None:
    seen = []
    monkeypatch.setattr(torch.nn.functional, "dropout", torch.nn.functional.dropout)  # put back at the end
    monkeypatch.setattr("no_trainer.launch.dropout", lambda x, *args, **options: seen.append(x.shape) or x)
    run(*own_files, "--max_train_steps", 1)
    assert any(len(shape) == 4 for shape in seen)  # attention
    assert any(len(shape) == 3 for shape in seen)  # hidden states


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc than glibc's")
def test_memory_that_a_step_frees_is_there_for_the_next_one() -> None:
    """Tensors of 1 to 47 MB, as in a step: their pages are asked for in the first few of them only."""
    code = """
import resource, torch
from no_trainer.launch import tune_cpu
tune_cpu()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step = [torch.ones(megabytes << 18) for megabytes in (1, 2, 3, 5, 8, 3, 2, 47)]
    step = None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = sorted(map(int, ended.stdout.split()[10:]))
    assert sum(pages[:-1]) < 10_000  # of 150,000; the heap may have to grow once more


def on_this_cpu(code: str, **environment: str) -> str:
    """What `code` prints in a process of its own after `tune_cpu`."""
    code = f"import os, torch\nfrom no_trainer.launch import tune_cpu\ntune_cpu()\n{code}"
    environment = os.environ | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


PRODUCTS = """
x, w = torch.randn(500, 384, requires_grad=True), torch.randn(1536, 384, requires_grad=True)
y = torch.nn.functional.linear(x, w)
y.backward(y.detach())
exact = x.double() @ w.double().T
for made, right in ((y, exact), (x.grad, exact @ w.double()), (w.grad, exact.T @ x.double())):
    print(((made - right).norm() / right.norm()).item())
"""


def test_products_in_fp32_are_fp32s_whatever_makes_them() -> None:
    errors = [float(line) for line in on_this_cpu(PRODUCTS).splitlines()]
    assert len(errors) == 3
    assert max(errors) < 1e-6  # in bf16 3e-3


CPU = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""


@pytest.mark.skipif("AuthenticAMD" not in CPU or "avx512bw" not in CPU, reason="not AMD's CPU with AVX-512")
def test_on_amds_cpus_onednn_makes_the_products_and_keeps_those_of_32_shapes() -> None:
    code = """
x = torch.randn(500, 384)
for columns in (48, *range(100, 140), 48):
    x @ torch.randn(384, columns)
"""
    lines = [line for line in on_this_cpu(code, ONEDNN_VERBOSE="2").splitlines() if "500x384:384x48," in line]
    assert sum(",exec," in line for line in lines) == 2
    assert sum("create:cache_miss" in line for line in lines) == 2  # forty others came between
    assert all("src:f32" in line and "wei:f32" in line and "avx512_core," in line for line in lines)


# --- the ways in, with and without a network


ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


@pytest.mark.slow
def test_two_processes_count_every_row_once_and_learn_the_same(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """23 validation rows in batches of 4: two processes have to be given one row twice, and not count it."""
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = ["--model_name_or_path", model, *own_files, "--per_device_eval_batch_size", 4, "--logging_steps", 1]
    flags += ["--learning_rate", 1e-3, "--num_train_epochs", 2]
    one = launch(*flags, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "one")
    two = launch(
        *flags, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "two",
        launcher=TORCHRUN, env={"ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    first, second = results(tmp_path / "one"), results(tmp_path / "two")
    assert second["global_batch_size"] == 8
    assert second["eval_confusion_matrix"] == first.pop("eval_confusion_matrix")
    for label, scores in first.pop("eval_per_class").items():
        assert second["eval_per_class"][label] == pytest.approx(scores, abs=1e-5), label
    for name in first:
        if name.startswith(("eval_", "baseline_", "train_loss")):
            assert second[name] == pytest.approx(first[name], abs=1e-5), name
    assert len(log_lines(tmp_path / "two")) == len(log_lines(tmp_path / "one")) == 18
    for a, b in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, abs=1e-4)
    assert two.stdout.count("epoch 1, step 8") == 1


@pytest.mark.slow
def test_two_processes_make_one_complaint(tiny_model: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("good", "a")] * 3)
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--validation_file", file]
    ended = launch(*flags, "--output_dir", tmp_path / "out", launcher=TORCHRUN)
    assert ended.returncode != 0
    assert ended.stderr.count("run_glue_no_trainer.py: error: the training data has only one class") == 1
    assert "RuntimeError" not in ended.stderr, "of the one that waits"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_accelerate_launch_on_the_cpu(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 3, "--output_dir", tmp_path]
    config = ROOT / "configs" / "accelerate" / "cpu.yaml"
    ended = launch(*flags, launcher=(*ACCELERATE, "--config_file", str(config)))
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path)["step"] == 3


@pytest.mark.slow
def test_accelerate_launch_of_two_processes_on_the_cpu(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """Where the file says MULTI_CPU, Accelerate starts one; two that do not know of each other are two runs."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 3, "--output_dir", tmp_path]
    config = ROOT / "configs" / "accelerate" / "multi_cpu.yaml"
    ended = launch(*flags, launcher=(*ACCELERATE, "--config_file", str(config)), env={"ACCELERATE_USE_CPU": "true"})
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path)["global_batch_size"] == 16
    assert ended.stdout.count("epoch 0.75, step 3") == 1


@pytest.mark.slow
def test_processes_that_do_not_know_of_each_other_are_refused(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """As `srun` starts them, with nothing that makes one run of them; the first one speaks."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--output_dir", tmp_path / "out"]
    first, second = (launch(*flags, env={"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank}) for rank in ("0", "1"))
    assert first.returncode == second.returncode == 2
    assert "error: SLURM_STEP_NUM_TASKS says that 2 processes were started, but each of them" in first.stderr
    assert "torchrun --nproc_per_node 2" in first.stderr
    assert second.stderr == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_end_of_accelerate_launch_is_a_signal_to_its_process(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """With one process Accelerate's launcher waits for it, and hands no signal on."""
    command = [
        *ACCELERATE,
        "--config_file",
        ROOT / "configs" / "accelerate" / "cpu.yaml",
        ROOT / "run_glue_no_trainer.py",
    ]
    flags = [
        "--model_name_or_path",
        tiny_model,
        *own_files,
        "--num_train_epochs",
        10_000,
        "--output_dir",
        tmp_path / "out",
    ]
    run = subprocess.Popen([*map(str, command), *map(str, flags)], stdout=subprocess.PIPE, text=True)
    while "training for" not in run.stdout.readline():
        assert run.poll() is None
    (child,) = psutil.Process(run.pid).children()
    run.terminate()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running()
    assert "SIGTERM: saved" in run.stdout.read()
    run.wait()


@pytest.mark.slow
def test_mpi_without_an_address_is_told_one(tiny_model: Path, own_files: list) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files]
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    ended = launch(*flags, env=mpi | {"ACCELERATE_USE_CPU": "true"})
    assert ended.returncode == 2
    assert "MASTER_ADDR expected, but not set; on one machine, set it to 127.0.0.1" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["deepspeed_zero2", "deepspeed_zero3_offload"])
def test_deepspeed_on_the_cpu(tiny_model: Path, own_files: list, tmp_path: Path, stage: str) -> None:
    """Two processes with a share each: the run of one without DeepSpeed, resumed in the middle and saved whole."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed; tests/README.md has the way")
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = ["--model_name_or_path", model, *own_files, "--max_train_steps", 12, "--learning_rate", 1e-3]
    flags += ["--logging_steps", 1, "--load_best_model_at_end"]
    alone = launch(*flags, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    config = str(ROOT / "configs" / "accelerate" / f"{stage}.yaml")
    launcher = (*ACCELERATE, "--config_file", config, "--num_processes", "2", "--mixed_precision", "no")
    shared = [*flags, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    for more in (["--checkpointing_steps", 5], ["--resume_from_checkpoint", tmp_path / "shared" / "step_5"]):
        ended = launch(
            *shared, "--output_dir", tmp_path / "shared", *more, launcher=launcher, env={"DS_ACCELERATOR": "cpu"}
        )
        assert ended.returncode == 0, ended.stderr
        one, two = results(tmp_path / "alone"), results(tmp_path / "shared")
        for name in ("eval_loss", "eval_accuracy", "train_loss", "best_step"):
            assert two[name] == pytest.approx(one[name], abs=1e-4), name
        for a, b in zip(log_lines(tmp_path / "alone"), log_lines(tmp_path / "shared"), strict=True):
            assert b["step"] == a["step"]
            assert b.get("loss") == pytest.approx(a.get("loss"), abs=1e-4)
        one, two = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict()
            for name in ("alone", "shared")
        )
        assert all(two[name].allclose(one[name], atol=1e-3) for name in one)


@pytest.mark.slow
def test_ten_steps_on_xla_compile_nothing_after_the_first_ones(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """On XLA's CPU device: other shapes, or a look at the device in a step, would show in the count of graphs."""
    pytest.importorskip("torch_xla", reason="torch_xla is not installed; tests/README.md has the way")
    flags = [
        "--model_name_or_path",
        tiny_model,
        *own_files,
        "--max_train_steps",
        10,
        "--per_device_train_batch_size",
        4,
    ]
    flags += ["--logging_steps", 100, "--max_length", 16, "--output_dir", tmp_path / "out"]
    counting = """if True:
        import runpy, sys
        import torch_xla.debug.metrics as metrics
        from torch.optim.optimizer import register_optimizer_step_post_hook
        def count(*_):
            print("graphs", (metrics.metric_data("CompileTime") or [0])[0])
        register_optimizer_step_post_hook(count)
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    ended = launch(*flags, launcher=(sys.executable, "-c", counting), env={"PJRT_DEVICE": "CPU"})
    assert ended.returncode == 0, ended.stderr
    graphs = [int(line.split()[1]) for line in ended.stdout.splitlines() if line.startswith("graphs ")]
    print(graphs)
    assert len(graphs) == 10
    assert len(set(graphs[2:])) == 1
    assert results(tmp_path / "out")["step"] == 10


@pytest.mark.slow
def test_a_compiled_model_is_padded_to_few_lengths_and_saved_like_any_other(
    tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """With the backend `eager`, which traces but compiles nothing: the shapes and the names are what matters here."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 4, "--output_dir", tmp_path]
    flags += ["--load_best_model_at_end", "--checkpointing_steps", 2]
    ended = launch(*flags, env={"ACCELERATE_DYNAMO_BACKEND": "EAGER", "TORCH_LOGS": "recompiles"})
    assert ended.returncode == 0, ended.stderr
    assert "size mismatch at index 1" not in ended.stderr  # nothing is compiled anew for another length
    same = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert not same["missing_keys"]
    assert not same["unexpected_keys"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(("accumulation", "by_layers"), [(1, False), (2, True)])
def test_a_compiled_model_has_the_losses_of_the_plain_one(
    run: Callable, tiny_model: Path, own_files: list, tmp_path: Path, accumulation: int, by_layers: bool
) -> None:
    model = without_dropout(tiny_model, tmp_path / "model")
    flags = [*own_files, "--model_name_or_path", model, "--max_train_steps", 4, "--learning_rate", 1e-2]
    flags += ["--per_device_train_batch_size", 8 // accumulation, "--gradient_accumulation_steps", accumulation]
    flags += ["--pad_to_max_length", "--max_length", 16, "--max_eval_samples", 8, "--logging_steps", 1]
    run(*flags, "--output_dir", tmp_path / "plain")
    dynamo = {"BACKEND": "INDUCTOR", "USE_DYNAMIC": "false", "USE_REGIONAL_COMPILATION": str(by_layers)}
    environment = {f"ACCELERATE_DYNAMO_{name}": value for name, value in dynamo.items()}
    ended = launch(
        *flags, "--output_dir", tmp_path / "compiled", env=environment | {"TORCH_LOGS": "recompiles,output_code"}
    )
    assert ended.returncode == 0, ended.stderr
    assert "Output code" in ended.stderr, "or nothing was compiled"
    assert ("Recompiling" in ended.stderr) == by_layers, "the evaluation compiles nothing but layers"
    losses = [
        [line["loss"] for line in log_lines(tmp_path / name) if "loss" in line] for name in ("plain", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0][-1] != losses[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_each_of_the_configs(file: Path) -> None:
    when, how = file.read_text().splitlines()[:2]
    assert when.startswith("# When to take it: ")
    assert f"accelerate launch --config_file configs/accelerate/{file.name}" in how
    config = load_config_from_file(str(file))  # refuses keys that it does not know
    assert config.use_cpu == ("cpu" in file.stem)


@pytest.mark.slow
def test_the_network_is_not_needed(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """In a network namespace of its own, with nothing told to be offline, and no waiting for what does not come."""
    cut_off = ("unshare", "-rn")
    try:
        subprocess.run([*cut_off, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 3, "--output_dir", tmp_path]
    ended = launch(*flags, launcher=(*cut_off, sys.executable), env={"HF_HUB_OFFLINE": "0"})
    assert ended.returncode == 0, ended.stderr
    assert "retry" not in ended.stderr.lower()
    assert results(tmp_path)["step"] == 3


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_launchers_variable_that_is_no_number_is_named(
    run: Callable, own_files: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    """Also when it would say that this process is not the first: one process always speaks."""
    monkeypatch.setenv(name, "abc")
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--max_train_steps", 1)
    assert exit_.value.code == 2
    assert f"{name} in the environment is 'abc', not a number" in capsys.readouterr().err


def test_one_process_does_not_wait_for_a_machine_that_is_none(
    run: Callable, own_files: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "29511"}
    for name, value in one.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--max_train_steps", 1)
    assert exit_.value.code == 2
    assert "MASTER_ADDR in the environment is 'nowhere.invalid': there is no such machine" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["nope", "meta", "xpu" if torch.cuda.is_available() else "cuda"])
def test_a_device_that_is_none_is_told_with_where_it_was_named(
    run: Callable, own_files: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, device: str
) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--max_train_steps", 1)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "Accelerate cannot start: " in said
    assert f"ACCELERATE_TORCH_DEVICE={device}" in said


def test_a_tracker_that_nobody_knows_is_named_without_tracking_too(
    run: Callable, own_files: list, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*own_files, "--max_train_steps", 1, "--report_to", "tensorbord")
    assert exit_.value.code == 2
    assert "did you mean tensorboard?" in capsys.readouterr().err


def test_a_second_run_in_one_process_has_a_precision_of_its_own(tmp_path: Path) -> None:
    """As in a notebook, where Accelerate would keep the first one's."""
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [])
    fresh_accelerate()
    for precision in ("bf16", "no", None):
        flags = ["--model_name_or_path", "m", "--train_file", str(file)]
        args = script.parse_args([*flags, *(["--mixed_precision", precision] if precision else [])])
        assert start_accelerator(args).mixed_precision == (precision or "no")
