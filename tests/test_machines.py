"""Four machines: network namespaces with addresses and names of their own, joined by a bridge, on one host."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TORCHRUN, launch, log_lines

pytestmark = pytest.mark.slow

MACHINES = """
mount -t tmpfs none /run
ip link set lo up
ip link add switch type bridge
ip link set switch up
for n in 1 2 3 4; do
    ip netns add m$n
    ip link add to$n type veth peer name eth0 netns m$n
    ip link set to$n master switch up
    ip -n m$n link set lo up
    ip -n m$n address add 10.77.0.$n/24 dev eth0
    ip -n m$n link set eth0 up
done
for n in 1 2 3 4; do
    named='hostname $0; mount --bind hosts /etc/hosts; exec "$@"'
    ip netns exec m$n unshare --mount --uts sh -c "$named" m$n "$@" > m$n.txt 2>&1 &
    all="$all $!"
done
for one in $all; do
    wait $one
    echo $?
done
"""


class Machines:
    """The same `accelerate launch` on four machines; `rank(n)` is the training process of that rank."""

    def __init__(self, folder: Path, *flags: object, launching: tuple[str, ...] = ()) -> None:
        config = ROOT / "configs" / "accelerate" / "multi_node.yaml"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
        command += [
            "--rdzv_backend",
            "c10d",
            "--main_process_ip",
            "m1",
            *launching,
            ROOT / "run_glue_no_trainer.py",
            *flags,
        ]
        names = "".join(f"10.77.0.{n} m{n}\n" for n in (1, 2, 3, 4))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self.folder = folder
        self.process = subprocess.Popen(
            ["unshare", "-rmn", "sh", "-c", MACHINES, "sh", *map(str, command)],
            cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )  # fmt: skip

    def wait(self, seconds: float = 240) -> list[int]:
        """The exit codes of the launchers on the four machines."""
        return [int(code) for code in self.process.communicate(timeout=seconds)[0].split()]

    def wait_for(self, path: Path) -> None:
        while not path.exists():
            assert self.process.poll() is None, self.said()
            time.sleep(0.01)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []

    def rank(self, number: int) -> psutil.Process:
        return next(process for process in self.processes() if process.environ().get("RANK") == str(number))

    def machine_of(self, process: psutil.Process) -> list[psutil.Process]:
        networks = {each: os.readlink(f"/proc/{each.pid}/ns/net") for each in self.processes()}
        return [each for each in networks if networks[each] == networks[process]]

    def said(self) -> str:
        return "\n".join((self.folder / f"m{n}.txt").read_text() for n in (1, 2, 3, 4))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machines]]:
    """Whatever a test puts here ends with it."""
    try:
        subprocess.run(
            ["unshare", "-rmn", "ip", "link", "add", "switch", "type", "bridge"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces and bridges cannot be made here: {error}")
    made: list[Machines] = []
    yield made
    for each in made:
        for process in [*each.processes(), each.process]:
            process.kill()


def test_four_machines_are_one_run_that_outlives_a_process(
    machines: list, tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    """It ends with the bytes of four processes on one machine that nobody killed; dropout is on."""
    flags = ["--model_name_or_path", tiny_model, *own_files, "--per_device_train_batch_size", 2]
    flags += ["--learning_rate", 1e-3, "--logging_steps", 1, "--num_train_epochs", 10]
    four = launch(
        *flags, "--output_dir", tmp_path / "one", "--checkpointing_steps", 8,
        launcher=(*TORCHRUN[:-1], "4"), env={"ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert four.returncode == 0, four.stderr
    out = tmp_path / "four"
    flags += ["--output_dir", out, "--checkpointing_steps", 8, "--resume_from_checkpoint", "latest"]
    run = Machines(tmp_path, *flags, launching=("--max_restarts", "3"))
    machines.append(run)
    run.wait_for(out / "step_8")
    run.rank(2).kill()
    assert run.wait() == [0, 0, 0, 0], run.said()
    assert f"going on from {out / 'step_'}" in run.said()
    assert log_lines(out) == log_lines(tmp_path / "one")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "one" / "model.safetensors").read_bytes()


def test_a_machine_that_dies_ends_the_others(
    machines: list, tiny_model: Path, own_files: list, tmp_path: Path
) -> None:
    flags = ["--model_name_or_path", tiny_model, *own_files, "--num_train_epochs", 10_000]
    run = Machines(tmp_path, *flags, "--checkpointing_steps", 8, "--output_dir", tmp_path / "out")
    machines.append(run)
    run.wait_for(tmp_path / "out" / "step_8")
    for process in run.machine_of(run.rank(3)):
        process.kill()
    codes = run.wait()
    assert sorted(codes) == [1, 1, 1, 128 + signal.SIGKILL], run.said()
    assert re.search("Connection (closed|reset) by peer", run.said())  # as the last packet had it
