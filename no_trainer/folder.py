"""The folder of a run: which checkpoints are in it, whether they are whole, and what makes them so."""

import contextlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import xxhash

WRITTEN = (  # what a training run writes, besides the files of the tokenizer
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "all_results.json",
    "log.jsonl", "validation_predictions.csv", "predict_results.csv", "training_curve.png", "confusion_matrix.png",
)  # fmt: skip
BEST = "best.safetensors"  # the weights of the best evaluation, while training goes on
LOCK = ".run.lock"  # held by the run that writes in the folder
HELD: list[Any] = []  # locks of this process


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first: by steps, and one after the evaluation of an epoch after one before.

    One that cannot say its step counts as the newest.
    """

    def age(path: Path) -> tuple[float, bool]:
        try:
            return json.loads((path / "progress.json").read_text())["step"], path.name.startswith("epoch_")
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf, False

    named = [path for path in folder.glob("*_*") if re.fullmatch(r"(step|epoch)_\d+", path.name)]
    ours = ("progress.json", "checksums.json")  # one of them may be lost
    return sorted((path for path in named if any((path / name).is_file() for name in ours)), key=age)


def checksum(file: Path) -> str:
    """The XXH3 of a file's bytes, 16 hexadecimal digits."""
    digest, block = xxhash.xxh3_64(), bytearray(1 << 20)
    with open(file, "rb", buffering=0) as content:
        while size := content.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()


def files_in(checkpoint: Path) -> dict[str, Path]:
    return {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; nothing if every file is there and is as it was written."""
    try:
        sums = dict(json.loads((checkpoint / "checksums.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return "checksums.json is missing or cannot be read"
    needed = sums.keys() | {"progress.json", "log.jsonl"}
    if missing := sorted(needed - files_in(checkpoint).keys()):
        return f"it has no {missing[0]}"
    wrong = (name for name, was in sums.items() if checksum(checkpoint / name) != was)
    return next((f"{name} is not as it was written" for name in wrong), "")


def allow_reading(file: Path) -> None:
    """Give a file the mode of any new one; safetensors writes its own for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    if os.name != "nt":
        file.chmod(0o666 & ~mask)


def to_disk(path: Path) -> None:
    """Wait until the file, or the folder's list of names, would survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def seal(folder: Path, name: str, limit: int | None) -> None:
    """Flush `.<name>.partial` in `folder` to the disk with its files' checksums, give it its name, drop the oldest."""
    aside, old = folder / f".{name}.partial", folder / f".{name}.old"
    sums = {file: checksum(path) for file, path in files_in(aside).items()}
    (aside / "checksums.json").write_text(json.dumps(sums, indent=2), encoding="utf-8")
    for path in [*aside.rglob("*"), aside]:
        to_disk(path)
    if (folder / name).exists():
        (folder / name).rename(old)
    aside.rename(folder / name)
    to_disk(folder)
    shutil.rmtree(old, ignore_errors=True)
    if limit:
        found = checkpoints(folder)  # those after this one are of steps that are taken again
        for path in found[: found.index(folder / name) + 1][:-limit]:
            shutil.rmtree(path.rename(folder / f".{path.name}.old"))


def hold(folder: Path, seconds: float = 0.5) -> bool:
    """Keep other runs out of the folder, until `let_go` or the end of this process; False if one is at work there."""
    import filelock  # not needed by a run that saves nothing

    lock = filelock.FileLock(folder.resolve() / LOCK)
    if any(held.lock_file == lock.lock_file for held in HELD):
        return True
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except (OSError, NotImplementedError):  # a file system without locks; one that cannot be written to shows later
        return True
    HELD.append(lock)
    return True


def let_go() -> None:
    """Let other runs into the folders that this process holds."""
    while HELD:
        lock = HELD.pop()
        with contextlib.suppress(OSError):  # Windows removes no open file
            os.unlink(lock.lock_file)  # before the release: who waits for it sees that the file is gone
        lock.release()


def is_free(folder: Path) -> bool:
    """Whether no run is at work in the folder."""
    if not (folder / LOCK).exists():
        return True
    free = hold(folder)
    let_go()
    return free


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what an earlier run has left in its folder, and nothing that anybody else has put there."""
    names = ["log.jsonl", "all_results.json", BEST, "glue_no_trainer", "training_curve.png", "confusion_matrix.png"]
    predictions = [*folder.glob("predict_results*.csv"), *folder.glob("validation_predictions*.csv")]
    for old in [*checkpoints(folder), *predictions, *(folder / name for name in names)]:
        remove(old)


def clear_aside(folder: Path) -> None:
    """Remove what a killed run was writing."""
    for left in folder.glob(".*.*"):
        if re.fullmatch(r"\.((step|epoch)_\d+\.(partial|old)|(model|best|all_results\.json)\.partial)", left.name):
            remove(left)
