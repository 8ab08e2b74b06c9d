"""The folder of a run: its checkpoints with their checksums, its lock, and what is cleared."""

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
TABLES = r"predict_results(_(mis)?matched)?\.csv|validation_predictions(_mm)?\.csv"
BEST = "best.safetensors"  # the weights of the best evaluation, while training goes on
LOCK = ".run.lock"  # held by the run that writes in the folder
HELD: list[Any] = []  # locks of this process


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first: by step, and epoch_* after step_*.

    If the step of one cannot be read, it counts as the newest.
    """

    def age(path: Path) -> tuple[float, bool]:
        try:
            step = float(json.loads((path / "progress.json").read_text())["step"])
            return step, path.name.startswith("epoch_")
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf, False

    named = [path for path in folder.glob("*_*") if re.fullmatch(r"(step|epoch)_\d+", path.name)]
    ours = ("progress.json", "checksums.json")  # one of them may be missing
    return sorted((path for path in named if any((path / name).is_file() for name in ours)), key=age)


def checksum(file: Path) -> str:
    """The XXH3 checksum of a file, as 16 hexadecimal digits."""
    digest, block = xxhash.xxh3_64(), bytearray(1 << 20)
    with open(file, "rb", buffering=0) as content:
        while size := content.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()


def is_of(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is one of the run in `folder`."""
    return checkpoint.resolve().parent == folder.resolve()


def files_in(checkpoint: Path) -> dict[str, Path]:
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    return {path.relative_to(checkpoint).as_posix(): path for path in files}


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; empty if all its files are there and unchanged."""
    try:
        sums = dict(json.loads((checkpoint / "checksums.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return "checksums.json is missing or cannot be read"
    if not sums:
        return "checksums.json is empty"
    needed = sums.keys() | {"progress.json", "log.jsonl"}
    if missing := sorted(needed - files_in(checkpoint).keys()):
        return f"it has no {missing[0]}"
    wrong = (name for name, was in sums.items() if checksum(checkpoint / name) != was)
    return next((f"{name} has changed since it was written" for name in wrong), "")


def allow_reading(file: Path) -> None:
    """Give a file the usual mode of new files; safetensors writes for the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    if os.name != "nt":
        file.chmod(0o666 & ~mask)


def to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, so that it survives a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def seal(folder: Path, name: str, limit: int | None) -> None:
    """Add checksums to `.<name>.partial`, flush it to disk, rename it; keep `limit` checkpoints."""
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
        found = checkpoints(folder)  # later ones are of steps that are repeated now
        for path in found[: found.index(folder / name) + 1][:-limit]:
            shutil.rmtree(path.rename(folder / f".{path.name}.old"))


def hold(folder: Path, seconds: float = 0.5) -> bool:
    """Lock the folder until `let_go` or the end of the process; False if another run has it."""
    import filelock  # a run that saves nothing does not need it

    lock = filelock.FileLock(folder.resolve() / LOCK)
    if any(held.lock_file == lock.lock_file for held in HELD):
        return True
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except PermissionError:  # of another user, or nobody may write here, which shows later
        return not (folder / LOCK).exists()
    except (OSError, NotImplementedError):  # no locks here; if not writable, that shows later
        return True
    HELD.append(lock)
    return True


def let_go() -> None:
    """Unlock the folders that this process has locked."""
    while HELD:
        release(HELD.pop())


def release(lock: Any) -> None:
    """Unlock a folder and remove the file of the lock."""
    with contextlib.suppress(OSError):  # Windows cannot remove an open file
        os.unlink(lock.lock_file)  # before the release: a waiting run sees that it is gone
    lock.release()


def is_free(folder: Path) -> bool:
    """Whether no run has locked the folder, one of this process included."""
    path = folder.resolve() / LOCK
    if not path.exists():
        return True
    if any(Path(held.lock_file) == path for held in HELD):
        return False
    before = len(HELD)
    free = hold(folder)
    if len(HELD) > before:
        release(HELD.pop())
    return free


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def is_card(file: Path) -> bool:
    """Whether a README.md is a model card: it begins with a block of metadata for the hub."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        return lines.readline().strip() == "---"


def clear(folder: Path, model: bool = True) -> None:
    """Remove what an earlier run has left in its folder, its model only if wanted, and nothing else."""
    names = ["log.jsonl", "all_results.json", BEST, "glue_no_trainer"]
    names += ["model.safetensors", "config.json"] * model
    names += ["training_curve.png", "confusion_matrix.png"]
    predictions = [file for file in folder.glob("*.csv") if re.fullmatch(TABLES, file.name)]
    card = folder / "README.md"
    names += ["README.md"] * (model and card.is_file() and not card.is_symlink() and is_card(card))
    for old in [*checkpoints(folder), *predictions, *(folder / name for name in names)]:
        remove(old)


def clear_aside(folder: Path) -> None:
    """Remove what a killed run had begun to write."""
    names = rf"((step|epoch)_\d+)\.(partial|old)|(model|best|all_results\.json|{TABLES}|[\w-]+\.tsv)\.partial"
    for left in [*folder.glob(".*.*"), *folder.glob("glue/.*.tsv.partial")]:
        if re.fullmatch(rf"\.({names})", left.name):
            remove(left)
