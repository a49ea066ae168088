"""Process groups of data-parallel training. The training loop knows only `ProcessGroup`."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lam_spark.errors import ModelError
from lam_spark.runtime.signals import ended_by_signals

Shared = TypeVar("Shared")
# Timeout of a collective call: a process with more files may join late. Dead processes are noticed by the launcher
# without it.
COLLECTIVE_TIMEOUT = dt.timedelta(hours=1)
# Pause between two polls of a Horovod operation.
_POLL_SECONDS = 0.0003
# Scaled by these powers of two, the sum over processes stays below 2**15 (float16), and the scale is a float32.
_FLOAT16_EXPONENT, _MIN_EXPONENT = 15, -100


class ProcessGroup(Protocol):
    """The processes of one training.

    Every method is collective: all processes call the same methods in the same order.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int
    size: int

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Start an elementwise sum over the processes and return a function that waits for the result.

        Sums that run at the same time must differ in their number of elements.
        """

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes."""
        return self.begin_sum(values)()

    def largest(self, value: int) -> int:
        """Maximum over the processes."""

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Rows of all processes, concatenated in the order of ranks; their numbers may differ."""

    def share(self, value: Shared) -> Shared:
        """Value of rank 0, on every process."""

    def share_weights(self, model: nn.Module) -> None:
        """Copy the weights of rank 0 to every process. The model must be on the CPU.

        A Horovod build for CPUs cannot broadcast tensors on a GPU.
        """

    def close(self) -> None:
        """Leave the group."""


class LocalGroup(ProcessGroup):
    """A single process."""

    rank, size = 0, 1

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Return the values."""
        return lambda: values

    def largest(self, value: int) -> int:
        """Return the value."""
        return value

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the rows."""
        return values

    def share(self, value: Shared) -> Shared:
        """Return the value."""
        return value

    def share_weights(self, model: nn.Module) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class HorovodGroup(ProcessGroup):
    """Processes started by horovodrun or Spark; gloo on CPUs, NCCL where Horovod was built with it."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        hvd.init()
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        if torch.cuda.is_available():
            _select_gpu(hvd.local_rank())

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Start an allreduce, between the GPUs themselves where Horovod was built with NCCL."""
        tensor = values if self._hvd.nccl_built() else values.cpu()
        handle = self._hvd.allreduce_async(tensor, op=self._hvd.Sum, name=f"sum_{values.numel()}")

        def wait() -> Tensor:
            # `synchronize` alone waits in a busy loop, which takes a core from the other processes.
            while not self._hvd.poll(handle):
                time.sleep(_POLL_SECONDS)
            return torch.as_tensor(self._hvd.synchronize(handle)).to(values.device)

        return wait

    def largest(self, value: int) -> int:
        """Allgather one number."""
        return int(self._hvd.allgather(torch.tensor([value]), name="largest").max())

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Allgather along the first axis."""
        gathered: npt.NDArray[np.float64] = self._hvd.allgather(
            torch.from_numpy(values), name="gather"
        ).numpy()
        return gathered

    def share(self, value: Shared) -> Shared:
        """Broadcast the serialised value."""
        shared: Shared = self._hvd.broadcast_object(value, root_rank=0, name="share")
        return shared

    def share_weights(self, model: nn.Module) -> None:
        """Broadcast parameters and buffers from rank 0."""
        self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def close(self) -> None:
        """Shut Horovod down."""
        self._hvd.shutdown()


class TorchGroup(ProcessGroup):
    """Processes started by torchrun or TorchDistributor; gloo on CPUs, NCCL between GPUs."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        gpus = torch.cuda.is_available()
        if gpus:
            _select_gpu(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=COLLECTIVE_TIMEOUT)
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Start an all-reduce."""
        total = values.clone()
        work = self._dist.all_reduce(total, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return total

        return wait

    def largest(self, value: int) -> int:
        """All-reduce one number."""
        maximum = torch.tensor([value])
        self._dist.all_reduce(maximum, op=self._dist.ReduceOp.MAX)
        return int(maximum)

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """All-gather the arrays."""
        parts: list[Any] = [None] * self.size
        self._dist.all_gather_object(parts, values)
        return np.concatenate(parts)

    def share(self, value: Shared) -> Shared:
        """Broadcast the serialised value."""
        values: list[Any] = [value]
        self._dist.broadcast_object_list(values, src=0)
        shared: Shared = values[0]
        return shared

    def share_weights(self, model: nn.Module) -> None:
        """Broadcast parameters and buffers from rank 0."""
        for tensor in model.state_dict().values():
            self._dist.broadcast(tensor, src=0)

    def close(self) -> None:
        """Leave the group."""
        self._dist.destroy_process_group()


def process_group_of(launcher: str) -> ProcessGroup:
    """Join the process group that a launcher has started."""
    if launcher == "in_process":
        return LocalGroup()
    return HorovodGroup() if launcher.startswith("horovod") else TorchGroup()


def _select_gpu(local_rank: int) -> None:
    """Use one GPU per process of a machine.

    Raises:
        ModelError: the machine has fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise ModelError(
            f"expected one GPU for each process, but this machine has {gpus} GPU(s) and a process with local rank "
            f"{local_rank}: set training.world_size to the number of GPUs (with one, training.launcher=in_process), or "
            "hide them with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    torch.cuda.set_device(local_rank)


def run_on_spark(
    work: Callable[[], None], world_size: int, environment: Mapping[str, str], log: IO[str]
) -> None:
    """Run `work` in Horovod processes that are tasks of the active Spark session; their output goes to `log`.

    Raises:
        Exception: a process failed, or fewer task slots are free than processes.
    """
    import horovod.spark

    with _without_horovods_handlers():
        horovod.spark.run(
            work, num_proc=world_size, use_gloo=True, env=dict(environment), stdout=log, stderr=log, verbose=0
        )


@contextlib.contextmanager
def _without_horovods_handlers() -> Iterator[None]:
    """Within it, Horovod's launcher leaves the signal handlers of this process as they are.

    Its own handlers of SIGINT and SIGTERM only set an event that ends the workers, and stay after the training: the
    run would end as a failed training, or not at all. The event is set when a signal ends the run.
    """
    from horovod.runner import gloo_run

    stopped = threading.Event()
    register = gloo_run.register_shutdown_event
    gloo_run.register_shutdown_event = lambda: stopped
    try:
        with ended_by_signals(stopped.set):
            yield
    except BaseException:
        stopped.set()
        raise
    finally:
        gloo_run.register_shutdown_event = register


def sum_gradients(
    group: ProcessGroup, parameters: Sequence[nn.Parameter], compress: bool = False
) -> list[Tensor]:
    """Replace each gradient by its sum over the processes, in one flat collective call.

    A parameter without gradient adds zeros. With `compress`, float16 is sent and summed, scaled so that the largest sum
    fits: values below about 1e-12 of the largest gradient are lost. Values that are not finite stay so.

    Returns:
        The gradients of this process.
    """
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if group.size == 1:
        return gradients
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    if compress:
        # float16 rounds values below 3e-8 to zero, and gradients are divided by the counts of all processes.
        exponent = _FLOAT16_EXPONENT - group.size.bit_length() - group.largest(_exponent(flat))
        scale = 2.0**exponent
        total = group.sum((flat * scale).half()).float() / scale
    else:
        total = group.sum(flat)
    start = 0
    for p in parameters:
        p.grad = total[start : start + p.numel()].view_as(p)
        start += p.numel()
    return gradients


def _exponent(values: Tensor) -> int:
    """The least e >= -100 with all finite values below 2**e."""
    largest = float(values.abs().max())
    # `frexp(0)` gives 0: a process without a batch would then decide the scale for the others.
    return max(math.frexp(largest)[1], _MIN_EXPONENT) if largest else _MIN_EXPONENT
