"""Training speed on this machine: data loading, two ranks, packing, matrix products, and the memory of a rank.

    python -m benchmarks.scale.training [--smoke]

- `loader_vs_memory`: events a second fed by petastorm from Parquet, as a share of the same batches from memory.
- `two_ranks`: two Horovod ranks of one thread against one process of one thread, same batch a rank; 2.0 is perfect.
  `two_ranks_torch`: by torch.distributed; `two_ranks_large_steps`: with four times the blocks a step.
- `two_independent`: two unrelated trainings at once, which is the most that a second rank could give here.
- `fp16_vs_float32`, `accumulate_4_vs_1`: two Horovod ranks with `fp16_gradient_compression`, and with four batches a
  step, against two without; `fp16_loss_difference`: change of the validation loss by the first.
- `packed_vs_padded`, `packed_vs_bucketed` (`..._at_512`, `..._at_2048`): see `benchmarks/support/packing.py`.
- `matmul_share`: FLOP/s of forward and backward as a share of the best float32 product of one thread, for 256 wide and
  4 layers; `matmul_share_small`: for 64 wide and 2 layers.
- `rank_peak_gib`, `rank_peak_at_4x`: peak memory of one rank, and its ratio at four times the blocks and queries.

Medians; compared variants take turns, because the machine's speed drifts. `--smoke`: few blocks, one turn.
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import report, smoke_requested
from benchmarks.support.blocks import make_blocks, write_blocks
from benchmarks.support.packing import packing
from benchmarks.support.steps import stack_blocks, step_loss, untrained_model
from benchmarks.support.training_processes import (
    LAYOUT,
    MICRO_BATCH_SIZE,
    ONE_PROCESS,
    QUERIED_BLOCKS,
    SIZE,
    make_spec,
    rank_memory,
    two_ranks,
)
from lam_spark.model.artifact import as_batch
from lam_spark.model.transformer import ModelSize
from lam_spark.training import trainer
from lam_spark.training.process_group import LocalGroup
from lam_spark.training_data.loader import BlockFiles, block_batches
from lam_spark.training_data.packing import Block

MEDIUM = ModelSize(256, 4, 8, 0.1)
# Rows, inner length and columns of the float32 products among which the fastest is chosen.
PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (2176, 256, 1376), (4096, 512, 4096))
TARGETS = {
    "loader_vs_memory": (">=", 0.9),
    "two_ranks": (">=", 1.7),
    "packed_vs_padded": (">=", 2.0),
    "matmul_share": (">=", 0.5),
    "rank_peak_at_4x": ("<=", 1.1),
}


def loader_vs_memory(folder: Path, count: int, turns: int) -> dict[str, float]:
    """Run the real training loop, in which pre-training epochs alternate between files and memory.

    The first epoch of either kind is a warm-up.
    """
    blocks = make_blocks(LAYOUT, count)
    urls = write_blocks(folder / "all", blocks)
    queried = write_blocks(folder / "queried", blocks[:QUERIED_BLOCKS])
    spec = make_spec(LAYOUT, folder, urls, queried, pretrain_epochs=2 * (turns + 1), **ONE_PROCESS)
    records: list[dict[str, Any]] = []
    # Pre-training reads its files whole; validation (no seed) and fine-tuning do not count.
    pretraining_blocks = count
    cached, served = list[Block](), [0]

    def feed(files: BlockFiles, *arguments: Any, **options: Any) -> Iterator[Block]:
        batches = block_batches(files, *arguments, **options)
        is_pretraining = options["seed"] is not None and files.blocks == pretraining_blocks
        if not is_pretraining or options["epoch"] % 2:
            return batches
        served[0] += 1
        if not cached:
            cached.extend(batches)
        return iter(cached)

    with mock.patch.object(trainer, "block_batches", feed):
        trainer.Trainer(spec, LocalGroup(), records.append).fit()
    assert served[0] == turns + 1, "expected every other epoch to be fed from memory"
    ends = [r for r in records if r["event"] == "epoch end" and r["phase"] == "pre-training"]
    speeds = [float(r["tokens_per_second"]) for r in ends]
    files, memory = statistics.median(speeds[2::2]), statistics.median(speeds[3::2])
    print(f"from files {files:,.0f} events/s, from memory {memory:,.0f}", flush=True)
    return {"files_events_per_second": files, "loader_vs_memory": files / memory}


def seconds_of(work: Callable[[], Any], repeats: int = 1) -> float:
    """Mean seconds of a call."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def best_product() -> tuple[float, float, Callable[[], Any]]:
    """FLOPs, seconds and call of the float32 product with the most FLOP/s on one thread."""

    def product(rows: int, inner: int, columns: int) -> Callable[[], Any]:
        left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        return lambda: torch.mm(left, right, out=out)

    candidates = []
    for rows, inner, columns in PRODUCTS:
        work = product(rows, inner, columns)
        work()
        candidates.append((2.0 * rows * inner * columns, min(seconds_of(work) for _ in range(5)), work))
    flops, seconds, work = max(candidates, key=lambda candidate: candidate[0] / candidate[1])
    print(f"fastest product: {flops / seconds / 1e9:.1f} GFLOP/s on one thread", flush=True)
    return flops, seconds, work


def matmul_share(size: ModelSize, turns: int) -> float:
    """FLOP/s of forward and backward of one batch, as a share of the fastest product, in turns."""
    model = untrained_model(LAYOUT, size)
    batch = as_batch(stack_blocks(LAYOUT, make_blocks(LAYOUT, MICRO_BATCH_SIZE)))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        step_loss(model, batch).backward()  # type: ignore[no-untyped-call]

    # torch's counter does not know the CPU's attention kernel; the MATH backend makes the same two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    step_flops = float(counter.get_total_flops())
    flops, product_seconds, product = best_product()
    step()
    step_seconds, products_seconds = [], []
    for _ in range(turns):
        step_seconds.append(seconds_of(step))
        # Measure the product for as long as the step.
        repeats = max(1, round(sum(step_seconds) / len(step_seconds) / product_seconds))
        products_seconds.append(seconds_of(product, repeats))
    step_rate = step_flops / statistics.median(step_seconds)
    rate = flops / statistics.median(products_seconds)
    print(f"d_model {size.d_model}: {step_rate / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s", flush=True)
    return step_rate / rate


def main() -> None:
    """Run all parts; each prints its figures when it ends."""
    smoke = smoke_requested(__doc__)
    warnings.simplefilter("ignore", FutureWarning)  # from petastorm, about pyarrow's legacy reader
    # For this process only; ranks get their thread count from the launcher.
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures |= loader_vs_memory(folder / "loader", 16 if smoke else 512, 1 if smoke else 7)
        figures |= packing(100 if smoke else 1000, 1 if smoke else 5)
        figures["matmul_share"] = matmul_share(MEDIUM, 2 if smoke else 7)
        figures["matmul_share_small"] = matmul_share(SIZE, 5 if smoke else 50)
        figures |= two_ranks(folder / "ranks", 16 if smoke else 512, 1 if smoke else 3)
        figures |= rank_memory(folder / "memory", 512 if smoke else 4096)
    report("training", figures, TARGETS)


if __name__ == "__main__":
    main()
