"""Ranks that train together. The loop knows only `ProcessGroup`: Horovod and torch.distributed stay behind it."""

from __future__ import annotations

import datetime as dt
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lam_spark.errors import ModelError

Shared = TypeVar("Shared")
# A rank that does not come ends the others after this. One that died is noticed at once, by its launcher and its
# broken connections; one that reads through more files than another before they meet may take long.
PATIENCE = dt.timedelta(hours=1)
# Between two looks whether Horovod is done.
_LOOK_SECONDS = 0.0003
# Scaled by these powers of two, the ranks' sum stays below 2**15, which a float16 holds, and the scale is a float32.
_HALF_EXPONENT, _LEAST_EXPONENT = 15, -100


class ProcessGroup(Protocol):
    """The ranks of one training run.

    Every method is collective: all ranks call it in the same order.
    """

    rank: int
    size: int

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin an elementwise sum over the ranks; what it returns waits for it and gives it.

        Sums that are under way at once must differ in their number of elements.
        """

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks."""
        return self.begin_sum(values)()

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The ranks' rows, one after the other; their numbers may differ."""

    def share(self, value: Shared) -> Shared:
        """Rank 0's value, on every rank."""

    def share_weights(self, model: nn.Module) -> None:
        """Give every rank the weights of rank 0, of a model that is still on the CPU.

        A Horovod that was built for CPUs cannot broadcast what is on a GPU.
        """

    def close(self) -> None:
        """Leave."""


class LocalGroup(ProcessGroup):
    """One process on its own."""

    rank, size = 0, 1

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """The values themselves."""
        return lambda: values

    def largest(self, value: int) -> int:
        """The value itself."""
        return value

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The rows themselves."""
        return values

    def share(self, value: Shared) -> Shared:
        """The value itself."""
        return value

    def share_weights(self, model: nn.Module) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class HorovodGroup(ProcessGroup):
    """Ranks that horovodrun (or Spark) started; gloo on CPUs, NCCL where Horovod was built with it."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        hvd.init()
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        if torch.cuda.is_available():
            _take_gpu(hvd.local_rank())

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """One allreduce; between the GPUs themselves where Horovod was built with NCCL."""
        given = values if self._hvd.nccl_built() else values.cpu()
        under_way = self._hvd.allreduce_async(given, op=self._hvd.Sum, name=f"sum_{values.numel()}")

        def end() -> Tensor:
            # Horovod waits in a loop that takes a whole core, from the ranks that it waits for.
            while not self._hvd.poll(under_way):
                time.sleep(_LOOK_SECONDS)
            return torch.as_tensor(self._hvd.synchronize(under_way)).to(values.device)

        return end

    def largest(self, value: int) -> int:
        """An allgather of one number."""
        return int(self._hvd.allgather(torch.tensor([value]), name="largest").max())

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """An allgather along the first axis."""
        gathered: npt.NDArray[np.float64] = self._hvd.allgather(
            torch.from_numpy(values), name="gather"
        ).numpy()
        return gathered

    def share(self, value: Shared) -> Shared:
        """A broadcast of the value in bytes."""
        shared: Shared = self._hvd.broadcast_object(value, root_rank=0, name="share")
        return shared

    def share_weights(self, model: nn.Module) -> None:
        """Broadcast parameters and buffers from rank 0."""
        self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def close(self) -> None:
        """Shut Horovod down."""
        self._hvd.shutdown()


class TorchGroup(ProcessGroup):
    """Ranks that torchrun or TorchDistributor started; gloo on CPUs, NCCL between GPUs."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        gpus = torch.cuda.is_available()
        if gpus:
            _take_gpu(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """One all-reduce."""
        summed = values.clone()
        under_way = self._dist.all_reduce(summed, async_op=True)

        def end() -> Tensor:
            under_way.wait()
            return summed

        return end

    def largest(self, value: int) -> int:
        """An all-reduce of one number."""
        found = torch.tensor([value])
        self._dist.all_reduce(found, op=self._dist.ReduceOp.MAX)
        return int(found)

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """An all-gather of the arrays."""
        parts: list[Any] = [None] * self.size
        self._dist.all_gather_object(parts, values)
        return np.concatenate(parts)

    def share(self, value: Shared) -> Shared:
        """A broadcast of the value in bytes."""
        held: list[Any] = [value]
        self._dist.broadcast_object_list(held, src=0)
        shared: Shared = held[0]
        return shared

    def share_weights(self, model: nn.Module) -> None:
        """Broadcast parameters and buffers from rank 0."""
        for tensor in model.state_dict().values():
            self._dist.broadcast(tensor, src=0)

    def close(self) -> None:
        """Leave the group."""
        self._dist.destroy_process_group()


def process_group_of(launcher: str) -> ProcessGroup:
    """The ranks that a launcher has started, joined by this process."""
    if launcher == "in_process":
        return LocalGroup()
    return HorovodGroup() if launcher.startswith("horovod") else TorchGroup()


def _take_gpu(local_rank: int) -> None:
    """Each rank of a machine has a GPU of its own."""
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise ModelError(
            f"rank {local_rank} of this machine finds {gpus} GPU(s), and each rank needs one of its own: set "
            "training.world_size to their number (with one, training.launcher=in_process), or hide them with "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    torch.cuda.set_device(local_rank)


def run_on_spark(work: Callable[[], None], ranks: int, environment: Mapping[str, str], log: IO[str]) -> None:
    """Run `work` as Horovod's ranks in tasks of the active Spark session; what they print goes to `log`.

    Raises:
        Exception: a rank failed, or there are not as many free slots as ranks.
    """
    import horovod.spark

    horovod.spark.run(
        work, num_proc=ranks, use_gloo=True, env=dict(environment), stdout=log, stderr=log, verbose=0
    )


def sum_gradients(
    world: ProcessGroup, parameters: Sequence[nn.Parameter], compress: bool = False
) -> list[Tensor]:
    """Replace each gradient by its sum over the ranks, in one flat collective.

    Where a rank's batch had nothing to say, or it had no batch, it adds zeros. With `compress`, float16 is what travels
    and what is summed, scaled so that the largest sum fits: what is below some 1e-12 of the largest gradient is lost.
    One that is not finite stays so.

    Returns:
        The rank's own gradients.
    """
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    own = [p.grad for p in parameters if p.grad is not None]
    if world.size == 1:
        return own
    flat = torch.cat([gradient.reshape(-1) for gradient in own])
    if compress:
        # Below 3e-8 a float16 is zero, and a gradient is a share of that of all ranks' moments.
        scale = 2.0 ** (_HALF_EXPONENT - world.size.bit_length() - world.largest(_exponent(flat)))
        summed = world.sum((flat * scale).half()).float() / scale
    else:
        summed = world.sum(flat)
    start = 0
    for p in parameters:
        p.grad = summed[start : start + p.numel()].view_as(p)
        start += p.numel()
    return own


def _exponent(values: Tensor) -> int:
    """The least e with all finite values below 2**e, though not so small that a scale by it would not be a float32."""
    largest = float(values.abs().max())
    # Of zero `frexp` says 0, and a rank without a batch would decide for those that have one.
    return max(math.frexp(largest)[1], _LEAST_EXPONENT) if largest else _LEAST_EXPONENT
