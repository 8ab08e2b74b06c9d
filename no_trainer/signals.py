"""SIGTERM and SIGINT: noted, so that a run ends after its step and with a checkpoint; and however `main` is left."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from no_trainer.folder import let_go
from no_trainer.memory import is_out_of_memory, stop_for_memory
from no_trainer.messages import EARLIER, open_streams

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # that end a run, with a checkpoint


class StopSignal:
    """SIGTERM and SIGINT, noted when they come, so that the step in hand is finished; a second SIGINT ends at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.received, self.since = 0, 0.0
        several = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        self.group = torch.distributed.new_group(backend="gloo") if several else None
        self.install(self.note)
        if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
            # `accelerate launch` of one process hands no signal on: let its end be one (PR_SET_PDEATHSIG)
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)

    def note(self, number: int, _frame: Any) -> None:
        # torchrun hands on the SIGINT that a terminal has sent to all of us: within a second it is the same one
        again = time.monotonic() - self.since > ("LOCAL_RANK" in os.environ)
        if self.received == number == signal.SIGINT and again:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self.since = number, time.monotonic()

    def __call__(self) -> int:
        """The signal that any process has got, or 0. The hosts tell each other: no device is waited for."""
        if self.group is None:
            return self.received
        number = torch.tensor(self.received)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self.group)
        return int(number)

    def install(self, handler: Any) -> None:
        """Set the handler of both signals; outside the main thread, which alone gets them, there is none."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, handler)

    def ignore(self) -> None:
        """From here on nothing happens at a signal."""
        self.install(signal.SIG_IGN)


def guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    """A `main` that can be left in any way: the caller's signal handlers are as before, the folder is free for other
    runs, and out of memory is told in one line."""

    @functools.wraps(main)
    def wrapped(*args: Any, **options: Any) -> Any:
        before = {number: signal.getsignal(number) for number in SIGNALS} | EARLIER
        EARLIER.clear()
        open_streams()
        try:
            return main(*args, **options)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            stop_for_memory(error, args[0] if args else None)
        finally:
            let_go()
            in_main_thread = threading.current_thread() is threading.main_thread()
            for number, handler in before.items():
                if in_main_thread and signal.getsignal(number) != signal.SIG_IGN:  # of a process that is about to end
                    signal.signal(number, handler)

    return wrapped
