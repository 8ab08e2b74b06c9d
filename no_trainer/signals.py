"""SIGTERM and SIGINT, which end a run with a checkpoint, and cleaning up when `main` ends."""

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
from no_trainer.messages import EARLIER, LAUNCH, open_streams

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # each ends a run with a checkpoint


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the step in hand can end; a second SIGINT ends at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.received, self.since = 0, 0.0
        several = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        self.group = torch.distributed.new_group(backend="gloo") if several else None
        self.install(self.note)
        if sys.platform == "linux" and LAUNCH in os.environ:
            # `accelerate launch` passes no signal to its only process: ask for one when it ends
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    def note(self, number: int, _frame: Any) -> None:
        # torchrun repeats the SIGINT that a terminal sends to all processes: within a second it is the same
        again = time.monotonic() - self.since > ("LOCAL_RANK" in os.environ)
        if self.received == number == signal.SIGINT and again:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self.since = number, time.monotonic()

    def __call__(self) -> int:
        """The signal that any process has received, or 0; gathered without waiting for the device."""
        if self.group is None:
            return self.received
        number = torch.tensor(self.received)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self.group)
        return int(number)

    def install(self, handler: Any) -> None:
        """Set the handler of both signals in the main thread, the only one that receives them."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, handler)

    def ignore(self) -> None:
        """Ignore both signals from here on."""
        self.install(signal.SIG_IGN)


def guarded(main: Callable[..., Any]) -> Callable[..., Any]:
    """`main` with cleaning up, however it ends: the caller's signal handlers are restored, the folder is free
    for other runs, and an out-of-memory error takes one line."""

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
                ending = signal.getsignal(number) == signal.SIG_IGN  # after `ignore`
                if in_main_thread and not ending:
                    signal.signal(number, handler)

    return wrapped
