"""Messages to the user: errors of one line, and names that are safe to print."""

import contextlib
import difflib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

LAUNCHERS = {  # launchers' variables: how many processes were started, and which of them this is
    "WORLD_SIZE": "RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",  # srun's; SLURM_NTASKS is set by sbatch, too
}
LAUNCH = "ACCELERATE_DYNAMO_USE_FULLGRAPH"  # set by `accelerate launch` of one process, and hardly by people
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # whatever some program takes as a line end
STARTING = contextlib.ExitStack()  # closed when the imports are done
EARLIER: dict[int, Any] = {}  # signal handlers that `before_imports` has replaced


def open_streams() -> None:
    """Replace standard streams that were closed before Python began (`>&-`); errors go to standard output.

    Otherwise the next file to be opened would take their number, and libraries would print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout


def stop(message: str, code: int = 2, alone: bool = False, last: str = "") -> NoReturn:
    """End the run with one line: on a mistake of the user (code 2) or a failure of the run (code 1).

    Only the first process prints an error that all have; `alone` says that no other process has it.
    After a failure, earlier checkpoints are said to be unchanged, unless the `last` words, such as a
    command to copy, say what there is to go on from.
    """
    first = process_number() == "0" or alone
    if not first:
        with contextlib.suppress(ValueError):  # outside the main thread
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)  # the launcher kills all processes once one ends: let the first print its message
    if first or os.environ.get("LOCAL_RANK") == "0":  # one on each machine: the machines may differ
        last = last or "Earlier checkpoints are unchanged." * (code == 1)
        message += f" {last}" * bool(last)
        message = show(re.sub(rf"\s*[{LINE_ENDS}]\s*", " ", message))
        above_bars = "tqdm" in sys.modules
        write = sys.modules["tqdm"].tqdm.write if above_bars else print
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed stream or a full disk
            write(f"run_glue_no_trainer.py: error: {message}", file=sys.stderr)
    sys.exit(code)


def process_number() -> str:
    """The number of this process among the launcher's, as text; `0` for the first or only one."""
    for size, rank in LAUNCHERS.items():
        if count(size) > 1:
            return os.environ.get(rank, "0")
    return "0"


def count(variable: str) -> int:
    """A number of processes in the environment; 1 where there is none that can be read."""
    text = os.environ.get(variable, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 1


def show(name: str) -> str:
    """A name or label in one line, with escapes for characters that would control a terminal."""

    def escape(character: str) -> str:
        return character.encode("unicode_escape", "surrogatepass").decode()

    return "".join(c if c.isprintable() else escape(c) for c in str(name))


def show_lines(text: str) -> str:
    """A text of several lines, each as `show` writes it."""
    return "\n".join(map(show, text.split("\n")))


def many(number: int, thing: str) -> str:
    """A number with its noun: `1 row`, `2 rows`."""
    return f"{number:,} {thing}" + "s" * (number != 1)


def some(things: Iterable[str], number: int | None = None) -> str:
    """The first five things, and how many more there are of them, or of the `number` that is given."""
    things = list(things)
    more = (number or len(things)) - len(things[:5])
    return ", ".join(things[:5]) + (f" and {more:,} more" if more else "")


@contextlib.contextmanager
def under_way(what: str) -> Iterator[None]:
    """Print in a terminal what is being done, if that takes more than three seconds."""
    timer = threading.Timer(3, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    if sys.stderr and sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watch_imports() -> None:
    """Until the imports are done, call `tell_environment` for an error that ends Python."""
    STARTING.callback(setattr, sys, "excepthook", sys.excepthook)
    sys.excepthook = tell_environment


def tell_environment(kind: type, error: BaseException, trace: Any) -> None:
    """An excepthook: if an import fails at the value of a variable, one line names it instead of a traceback."""
    said = str(error).strip().partition("\n")[0]
    named = [f"{name}={value}" for name, value in os.environ.items() if is_quoted(value, said)]
    if issubclass(kind, ValueError) and named:
        stop(f"a library cannot be imported: {said}; the environment has {', '.join(named)}")
    sys.__excepthook__(kind, error, trace)


def is_quoted(value: str, text: str) -> bool:
    """Whether the text has this value in quotes or, if it is not too short to tell, as a word."""
    as_word = len(value) > 2 and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)
    return bool(value and repr(value) in text or as_word)


def suggestion(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the most similar known one, if any."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def is_launched() -> bool:
    """Whether `accelerate launch`, torchrun or the like has started this process."""
    return any(name in os.environ for name in (LAUNCH, *LAUNCHERS))
