"""The ways in: python, accelerate launch and torchrun, one process and two, with and without a network."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, TORCHRUN, launch, log_lines, without_dropout, write_csv
from transformers import AutoModelForSequenceClassification

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")
pytestmark = pytest.mark.slow


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


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
    for name in first:
        if name.startswith(("eval_", "baseline_", "train_loss")):
            assert second[name] == pytest.approx(first[name], abs=1e-5), name
    assert len(log_lines(tmp_path / "two")) == len(log_lines(tmp_path / "one")) == 18
    for a, b in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, abs=1e-4)
    assert two.stdout.count("epoch 1, step 8") == 1


def test_two_processes_make_one_complaint(tiny_model: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("good", "a")] * 3)
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--validation_file", file]
    ended = launch(*flags, "--output_dir", tmp_path / "out", launcher=TORCHRUN)
    assert ended.returncode != 0
    assert ended.stderr.count("run_glue_no_trainer.py: error: the training data has only one class") == 1
    assert "RuntimeError" not in ended.stderr, "of the one that waits"
    assert not (tmp_path / "out").exists()


def test_accelerate_launch_on_the_cpu(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 3, "--output_dir", tmp_path]
    config = ROOT / "configs" / "accelerate" / "cpu.yaml"
    ended = launch(*flags, launcher=(*ACCELERATE, "--config_file", str(config)))
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path)["step"] == 3


def test_accelerate_launch_of_two_processes_on_the_cpu(tiny_model: Path, own_files: list, tmp_path: Path) -> None:
    """Where the file says MULTI_CPU, Accelerate starts one; two that do not know of each other are two runs."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--max_train_steps", 3, "--output_dir", tmp_path]
    config = ROOT / "configs" / "accelerate" / "multi_cpu.yaml"
    ended = launch(*flags, launcher=(*ACCELERATE, "--config_file", str(config)), env={"ACCELERATE_USE_CPU": "true"})
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path)["global_batch_size"] == 16
    assert ended.stdout.count("epoch 0.75, step 3") == 1


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


def test_the_first_process_of_another_machine_says_what_is_wrong_there() -> None:
    flags = ["--model_name_or_path", "m", "--train_file", "only_on_the_first_machine.csv"]
    several = {"WORLD_SIZE": "4", "RANK": "2"}
    one, other = (launch(*flags, env=several | {"LOCAL_RANK": rank}) for rank in ("0", "1"))
    assert (one.returncode, other.returncode) == (2, 2)
    assert "there is no such file" in one.stderr
    assert other.stderr == ""


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


def test_mpi_without_an_address_is_told_one(tiny_model: Path, own_files: list) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files]
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    ended = launch(*flags, env=mpi | {"ACCELERATE_USE_CPU": "true"})
    assert ended.returncode == 2
    assert "MASTER_ADDR expected, but not set; on one machine that is 127.0.0.1" in ended.stderr


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


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_each_of_the_configs(file: Path) -> None:
    when, how = file.read_text().splitlines()[:2]
    assert when.startswith("# When to take it: ")
    assert f"accelerate launch --config_file configs/accelerate/{file.name}" in how
    config = load_config_from_file(str(file))  # refuses keys that it does not know
    assert config.use_cpu == ("cpu" in file.stem)


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
