"""What the user is told: errors of one line, names as a terminal can show them."""

import contextlib
import difflib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NoReturn

LAUNCHERS = {  # where a launcher says how many processes it has started: where it says which of them this one is
    "WORLD_SIZE": "RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",  # srun's; SLURM_NTASKS is also there in a script that sbatch started once
}
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # whatever begins a new line somewhere
STARTING = contextlib.ExitStack()  # closed when the imports are done
EARLIER: dict[int, Any] = {}  # handlers of signals that `before_imports` has exchanged


def open_streams() -> None:
    """Open what was closed before Python began (`>&-`): what is said goes nowhere, an error to standard output.

    Otherwise the next file to be opened would be in its place, and get what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout


def stop(message: str, code: int = 2, alone: bool = False, command: str = "") -> NoReturn:
    """End the run with one line on what the user can mend (code 2) or on what befell the run (code 1).

    Of several processes with the same error the first one speaks; an error that only this process knows of is `alone`.
    A `command` that helps stands at the end of the line, where it can be copied.
    """
    first = process_number() == "0" or alone
    if not first:
        with contextlib.suppress(ValueError):  # outside the main thread
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)  # the launcher ends all processes as soon as one has left: let the first finish its sentence
    if first or os.environ.get("LOCAL_RANK") == "0":  # the first of another machine, which may lack what that one has
        message += " Earlier checkpoints are as they were." * (code == 1) + f" {command}" * bool(command)
        message = show(re.sub(rf"\s*[{LINE_ENDS}]\s*", " ", message))
        write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print  # above a progress bar
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nowhere to write to: closed, or a full disk
            write(f"run_glue_no_trainer.py: error: {message}", file=sys.stderr)
    sys.exit(code)


def process_number() -> str:
    """Which of a launcher's processes this one is; `0` if it is the first, or the only one."""
    for size, rank in LAUNCHERS.items():
        if count(size) > 1:
            return os.environ.get(rank, "0")
    return "0"


def count(variable: str) -> int:
    """A number of processes in the environment; 1 where there is none that can be read."""
    text = os.environ.get(variable, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 1


def show(name: str) -> str:
    """A name or label of the user's in one line: characters that a terminal would obey are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(name))


def many(number: int, thing: str) -> str:
    """A number of things, in words: `1 row`, `2 rows`."""
    return f"{number:,} {thing}" + "s" * (number != 1)


def some(things: Iterable[str], number: int) -> str:
    """The first five of a number of things, and how many there are besides."""
    named = list(islice(things, 5))
    return ", ".join(named) + f" and {number - len(named):,} more" * (number > len(named))


@contextlib.contextmanager
def under_way(what: str) -> Iterator[None]:
    """Say at a terminal what is being done, if that takes longer than three seconds."""
    timer = threading.Timer(3, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    if sys.stderr and sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def suggestion(word: str, known: Sequence[str]) -> str:
    """What to say of a name that nobody knows: the nearest one that there is."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def is_launched() -> bool:
    """Whether `accelerate launch`, torchrun or the like has started this process."""
    return any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", *LAUNCHERS))
