"""The folder of a run: which checkpoints are in it, whether they are whole, and what makes them so."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import xxhash

BEST = "best.safetensors"  # the weights of the best evaluation, while training goes on


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
    return sorted((path for path in named if any((path / name).exists() for name in ours)), key=age)


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
    if missing := sorted(sums.keys() - files_in(checkpoint).keys()):
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


def clear(folder: Path) -> None:
    """Remove what an earlier run has left in its folder, and nothing that anybody else has put there."""
    names = ("log.jsonl", "all_results.json", BEST, "glue_no_trainer", "predict_results.csv", "training_curve.png")
    for old in [*checkpoints(folder), *(folder / name for name in names)]:
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)


def clear_aside(folder: Path) -> None:
    """Remove what a killed run was writing."""
    for left in folder.glob(".*_*.*"):
        if re.fullmatch(r"\.(step|epoch)_\d+\.(partial|old)", left.name):
            shutil.rmtree(left)
