"""The training on this machine: what feeding, ranks and packing make of one thread's speed, and a rank's memory.

    python benchmarks/training.py [--small]

- `loader_vs_memory`: epochs of one training, fed in turn from Parquet files by petastorm and with the same batches
  held in memory. One process, one thread.
- `two_ranks`: events a second of two Horovod ranks of one thread against one process of one thread, equal batch a
  rank, in the second epoch; 2.0 would be perfect. `two_ranks_torch`: the same by torch.distributed;
  `two_ranks_large_steps`: with four times the blocks a step, where ranks meet a quarter as often.
- `two_apart`: two trainings of one process each at once, which share nothing but the machine: the most that a second
  rank could be worth here.
- `fp16_vs_float32`, `accumulate_4_vs_1`: two Horovod ranks with `fp16_gradient_compression`, and with four batches a
step,
  against two without; `fp16_loss_difference`: what the first does to the validation loss.
- `packed_vs_padded`, `packed_vs_bucketed`: blocks against one customer a row (`training_packing.py`);
  `..._at_512`: at the default context; `..._at_2048`: where nearly all histories are whole.
- `matmul_share`: FLOP/s of the matrix products of forward and backward, as a share of the best float32 product that
  one thread makes in the same minutes; for a medium size (256 wide, 4 layers) and the small one (64 wide, 2 layers).
- `rank_peak_gib`, `rank_peak_at_4x`: peak memory of one rank, and what four times the blocks and questions make of it.

Medians, and whatever is compared takes turns: the machine's speed drifts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import torch
from blocks import blocks, write
from common import report, small_asked
from steps import loss, stacked, untrained
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_packing import packing
from training_ranks import BATCH_BLOCKS, LAYOUT, QUERIED_BLOCKS, SIZE, rank_memory, spec_of, two_ranks

from lam_spark.model.artifact import as_batch
from lam_spark.model.transformer import ModelSize
from lam_spark.training import trainer
from lam_spark.training.process_group import LocalGroup
from lam_spark.training_data.loader import BlockFiles, block_batches
from lam_spark.training_data.packing import Block

MEDIUM = ModelSize(256, 4, 8, 0.1)
# Rows, inner length and columns of the float32 products among which the fastest is looked for.
PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (2176, 256, 1376), (4096, 512, 4096))
TARGETS = {
    "loader_vs_memory": (">=", 0.9),
    "two_ranks": (">=", 1.7),
    "packed_vs_padded": (">=", 2.0),
    "rank_peak_at_4x": ("<=", 1.1),
}


def loader_vs_memory(folder: Path, count: int, turns: int) -> dict[str, float]:
    """The real loop; odd epochs of pre-training read files, even ones get what the second one has read.

    The first epoch of either kind is for warming up.
    """
    made = blocks(LAYOUT, count)
    urls, queried = write(folder / "all", made), write(folder / "queried", made[:QUERIED_BLOCKS])
    spec = spec_of(
        LAYOUT, folder, urls, queried, launcher="in_process", world_size=1, pretrain_epochs=2 * (turns + 1)
    )
    told: list[dict[str, Any]] = []
    held, served = list[Block](), [0]

    def feed(files: BlockFiles, *arguments: Any, **options: Any) -> Iterator[Block]:
        batches = block_batches(files, *arguments, **options)
        judges = options["seed"] is None
        if judges or loop.state.phase != "pre-training" or options["epoch"] % 2:
            return batches
        served[0] += 1
        if not held:
            held.extend(batches)
        return iter(held)

    with mock.patch.object(trainer, "block_batches", feed):
        loop = trainer.Trainer(spec, LocalGroup(), told.append)
        loop.fit()
    assert served[0] == turns + 1, "every other epoch is fed from memory"
    ends = [r for r in told if r["event"] == "epoch end" and r["phase"] == "pre-training"]
    speeds = [float(r["tokens_per_second"]) for r in ends]
    files, memory = statistics.median(speeds[2::2]), statistics.median(speeds[3::2])
    print(f"from files {files:,.0f} events/s, from memory {memory:,.0f}", flush=True)
    return {"files_events_a_second": files, "loader_vs_memory": files / memory}


def seconds_of(work: Callable[[], Any], repeats: int = 1) -> float:
    """Of one call, the mean of so many."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def best_product() -> tuple[float, float, Callable[[], Any]]:
    """FLOPs, seconds and call of the float32 product with the most FLOP/s here."""

    def product(rows: int, inner: int, columns: int) -> Callable[[], Any]:
        left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        return lambda: torch.mm(left, right, out=out)

    found = []
    for rows, inner, columns in PRODUCTS:
        work = product(rows, inner, columns)
        work()
        found.append((2.0 * rows * inner * columns, min(seconds_of(work) for _ in range(5)), work))
    flops, seconds, work = max(found, key=lambda one: one[0] / one[1])
    print(f"fastest product: {flops / seconds / 1e9:.1f} GFLOP/s on one thread", flush=True)
    return flops, seconds, work


def matmul_share(size: ModelSize, turns: int) -> float:
    """Forward and backward of one batch beside the fastest product, in turns."""
    model = untrained(LAYOUT, size)
    batch = as_batch(stacked(LAYOUT, blocks(LAYOUT, BATCH_BLOCKS)))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss(model, batch).backward()  # type: ignore[no-untyped-call]

    # torch's counter does not know the CPU's attention kernel; written out it is the same two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    step_flops = float(counter.get_total_flops())
    flops, product_seconds, product = best_product()
    step()
    of_step, of_product = [], []
    for _ in range(turns):
        of_step.append(seconds_of(step))
        # As long as the step, so that both see the same of the machine's moods.
        repeats = max(1, round(sum(of_step) / len(of_step) / product_seconds))
        of_product.append(seconds_of(product, repeats))
    step_rate = step_flops / statistics.median(of_step)
    rate = flops / statistics.median(of_product)
    print(f"width {size.d_model}: {step_rate / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s", flush=True)
    return step_rate / rate


def main() -> None:
    """Run all parts; each is printed as soon as it is known."""
    small = small_asked(__doc__)
    warnings.simplefilter("ignore", FutureWarning)  # petastorm's, of pyarrow's old reader
    # Of this process; ranks get their own from the launcher.
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures |= loader_vs_memory(folder / "loader", 128 if small else 512, 2 if small else 7)
        figures |= packing(500 if small else 1000, 2 if small else 5)
        figures["matmul_share"] = matmul_share(MEDIUM, 2 if small else 7)
        figures["matmul_share_small"] = matmul_share(SIZE, 10 if small else 50)
        figures |= two_ranks(folder / "world_size", 64 if small else 512, 1 if small else 3)
        figures |= rank_memory(folder / "memory", 512 if small else 4096)
    report("training", figures, TARGETS)


if __name__ == "__main__":
    main()
