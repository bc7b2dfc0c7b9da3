"""SIGTERM and Ctrl-C: finish the step, save, and stop all ranks after the same step."""

from __future__ import annotations

import os
import signal

import torch
import torch.distributed as dist
from torch import Tensor


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a request to stop after this step (with several ranks, the next).

    A second signal exits immediately. A signal reaches each rank at a different moment. To stop all ranks after the
    same step, each step starts a reduction of one number on the CPU and reads the result of the reduction started a
    step before, so no rank waits.
    """

    def __enter__(self) -> StopSignal:
        self.raised = False
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.pending: tuple[dist.Work, Tensor] | None = None
        self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: object) -> None:
        if self.raised:
            os._exit(128 + number)
        self.raised = True
        if self.group is None or dist.get_rank() == 0:
            which = b"this" if self.group is None else b"the next"
            if os.isatty(2):
                os.write(2, b"\r\x1b[K")  # erases the live bar, which is soon drawn again below
            os.write(2, b"stopping after %b step and saving; a second Ctrl-C quits at once without saving\n" % which)

    def agreed(self) -> bool:
        """True if all ranks stop now, after the current step; every rank must call this once per step."""
        if self.group is None:
            return self.raised
        stop = False
        if self.pending is not None:
            work, flag = self.pending
            work.wait()
            stop = bool(flag)
        flag = torch.tensor([int(self.raised)])
        self.pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group, async_op=True), flag)
        return stop
