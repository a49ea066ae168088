"""Training on one GPU: correctness against the CPU, events per second, and share of the matrix-product rate.

    python -m benchmarks.gpu.one_gpu [--smoke] [--parts gradients fit step attention]

Blocks are synthetic and fed from memory. Needs torch and this project's model, training and configuration code, not
Spark. Without a GPU it prints a message and exits with code 1. `--smoke`: the small size only.

- `gradients`: loss and gradient of one step, compared with the CPU's.
- `fit`: a whole small training on the CPU and on the GPU in float32 and bfloat16; the artifact is opened on the CPU.
- `step`: one training step of three sizes. FLOPs are those of the matrix products that torch counts; the reference rate
  is a bfloat16 product of 8192 x 8192 in the same run.
- `attention`: the model's dense mask, compared with `flex_attention` and its block mask.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import command_line, report
from benchmarks.support.blocks import DAYS, make_blocks
from benchmarks.support.steps import stack_blocks, step_loss, untrained_model
from lam_spark.config import TrainingConfig
from lam_spark.model.artifact import as_batch, open_artifact, read_artifact
from lam_spark.model.attention import attention_mask, query_event_mask
from lam_spark.model.transformer import ModelSize
from lam_spark.training import trainer
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training_data import loader
from lam_spark.training_data.layout import MICROS_PER_DAY, Layout, Target
from lam_spark.training_data.packing import Block, unfold

LAYOUT = Layout(
    categorical=("touchpoint", "place", "item", "offer", "action"),
    sizes=(9, 600, 2000, 40, 12),
    numeric=("quantity", "amount", "discount"),
    count_by="action",
    counted_ids=tuple(range(3, 12)),
    window_days=(28, 91, 365),
    block_events=512,
    queries_per_block=32,
    targets=(Target("reply"),),
)
# d_model, n_layers, n_heads, blocks per step.
SIZES = {"small": (64, 2, 4, 64), "medium": (512, 8, 8, 64), "xlarge": (1024, 24, 16, 32)}
PARTS = ("gradients", "fit", "step", "attention")
SETTINGS = TrainingConfig(
    seed=1,
    threads_per_rank=4,
    pretrain_epochs=2,
    finetune_epochs=3,
    patience=3,
    micro_batch_size=8,
    experiment="gpu",
)


@functools.cache
def cached_blocks(count: int) -> list[Block]:
    """`count` full blocks."""
    return make_blocks(LAYOUT, count)


def read_by_pyarrow(files: Any, layout: Layout, seed: int | None, epoch: int) -> Iterator[Block]:
    """Row groups by pyarrow in shuffled order, where petastorm is not installed."""
    groups = [(url, n) for url in files.urls for n in range(pq.ParquetFile(url[7:]).num_row_groups)]
    if seed is not None:
        np.random.default_rng([seed, epoch]).shuffle(groups)
    for url, number in groups:
        table = pq.ParquetFile(url[7:]).read_row_group(number)
        block = {
            name: table[name].combine_chunks().flatten().to_numpy().reshape(-1, length)
            for name, (_, length) in layout.columns.items()
        }
        yield unfold(layout, block)


def fit(folder: Path, device: str, precision: str, count: int) -> dict[str, Any]:
    """Run a whole small training and return its measurements."""
    blocks = cached_blocks(count)
    table = pa.table({name: [block[name].ravel() for block in blocks] for name in blocks[0]})
    path = folder / "blocks.parquet"
    pq.write_table(table, path, row_group_size=32)
    spec = TrainingSpec(
        layout=LAYOUT,
        size=ModelSize(64, 2, 4, 0.1),
        settings=SETTINGS.model_copy(update={"precision": precision}),
        all_urls=(f"file://{path}",),
        queried_urls=(f"file://{path}",),
        validation_start=200 * MICROS_PER_DAY,
        test_start=(DAYS + 1) * MICROS_PER_DAY,
        numeric_mean=(2.0,) * len(LAYOUT.numeric),
        numeric_std=(1.0,) * len(LAYOUT.numeric),
        numeric_edges=((0.0, 1.0, 2.0, 3.0, 4.0),) * len(LAYOUT.numeric),
        target="reply",
        target_weights=(1.0,),
        folder=str(folder),
        facts={},
    )
    records: list[dict[str, Any]] = []
    with mock.patch("torch.cuda.is_available", return_value=device == "cuda"):
        loop = trainer.Trainer(spec, LocalGroup(), records.append)
    assert loop.device.type == device
    started = time.monotonic()
    digest = loop.fit()
    seconds = time.monotonic() - started
    summary = open_artifact(*read_artifact(folder), digest).facts["training"]
    ends = [r for r in records if r["event"] == "epoch" and "validation loss" in r]
    pretraining_losses = [r["validation loss"] for r in ends if "validation AUC" not in r]
    return {
        "seconds": seconds,
        "next_loss": pretraining_losses[-1],
        "validation_loss": summary["validation"]["loss"],
        "auc": summary["validation"]["AUC"],
        "tokens_per_second": summary["tokens"] / seconds,
    }


def compare_gradients(count: int) -> dict[str, float]:
    """Relative error of loss and gradient of one step on the GPU, in float32 and bfloat16."""
    block = stack_blocks(LAYOUT, cached_blocks(count))
    results: dict[str, tuple[float, torch.Tensor]] = {}
    for name, device, bfloat16 in (
        ("cpu", "cpu", False),
        ("float32", "cuda", False),
        ("bfloat16", "cuda", True),
    ):
        model = untrained_model(LAYOUT, ModelSize(64, 2, 4, 0.0)).to(device)
        loss = step_loss(model, as_batch(block, torch.device(device)), bfloat16)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.reshape(-1).cpu() for p in model.parameters() if p.grad is not None])
        results[name] = (float(loss.detach()), gradient)
    (loss_cpu, gradient_cpu), figures = results.pop("cpu"), {}
    for name, (loss_gpu, gradient) in results.items():
        figures[f"loss_error_{name}"] = abs(loss_gpu - loss_cpu) / abs(loss_cpu)
        figures[f"gradient_error_{name}"] = float((gradient - gradient_cpu).norm() / gradient_cpu.norm())
    return figures


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, with the device synchronised."""
    for _ in range(2):
        work()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def product_rate() -> float:
    """FLOP/s of a bfloat16 matrix product of 8192 x 8192."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds_of(lambda: left @ right, 20)


def step(name: str, bfloat16: bool, compiled: bool, rate: float, repeats: int) -> dict[str, float]:
    """One training step of a size, including the batch's transfer to the device."""
    d_model, n_layers, n_heads, count = SIZES[name]
    model = untrained_model(LAYOUT, ModelSize(d_model, n_layers, n_heads, 0.1)).cuda()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    block, device = stack_blocks(LAYOUT, cached_blocks(count)), torch.device("cuda")
    events = int((block["window"] > 0).sum())

    def once() -> None:
        optimiser.zero_grad(set_to_none=True)
        step_loss(model, as_batch(block, device), bfloat16).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    once()
    with FlopCounterMode(display=False) as counter:
        once()
    if compiled:  # only now, because the counter does not see compiled products
        model.compile()
    torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(once, repeats)
    return {
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "tokens_per_second": events / seconds,
        "tflops": counter.get_total_flops() / seconds / 1e12,
        "share_of_products": counter.get_total_flops() / seconds / rate,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def attention(name: str, repeats: int) -> dict[str, float]:
    """Forward and backward of one attention layer in bfloat16: dense mask, and `flex_attention`."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    d_model, _, n_heads, count = SIZES[name]
    batch = as_batch(stack_blocks(LAYOUT, cached_blocks(count)), torch.device("cuda"))
    mask = attention_mask(batch["window"], query_event_mask(batch))
    slots = mask.shape[1]
    shape = (count, n_heads, slots, d_model // n_heads)
    qkv = [torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def dense() -> None:
        F.scaled_dot_product_attention(*qkv, attn_mask=mask[:, None]).sum().backward()

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return mask[b, q, k]

    compiled = torch.compile(flex_attention)

    def make_mask() -> Any:
        return create_block_mask(visible, count, None, slots, slots, device="cuda")

    block_mask = make_mask()

    def flex() -> None:
        compiled(*qkv, block_mask=block_mask).sum().backward()

    with torch.no_grad():
        expected = F.scaled_dot_product_attention(*qkv, attn_mask=mask[:, None])
        gap = float((expected - compiled(*qkv, block_mask=block_mask)).abs().max())
    return {
        "dense_ms": seconds_of(dense, repeats) * 1e3,
        "flex_ms": seconds_of(flex, repeats) * 1e3,
        "mask_ms": seconds_of(make_mask, repeats) * 1e3,
        "visible_share": float(mask.float().mean()),
        "gap": gap,
    }


def main() -> None:
    """Run the requested parts; each prints its figures when it ends."""
    parser = command_line(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    smoke, parts = arguments.smoke, arguments.parts
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu.one_gpu: expected a CUDA device, torch sees none")
    try:
        import petastorm  # noqa: F401
    except ImportError:
        loader._row_groups = read_by_pyarrow
        print("petastorm is not installed: row groups are read by pyarrow", flush=True)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda, flush=True)
    figures: dict[str, float] = {}

    def add(part: str, values: dict[str, float]) -> None:
        print(part, json.dumps({key: round(value, 6) for key, value in values.items()}), flush=True)
        figures.update({f"{part}_{key}": value for key, value in values.items()})

    repeats = 5 if smoke else 10
    if "gradients" in parts:
        add("gradients", compare_gradients(8))
    if "fit" in parts:
        for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
            with tempfile.TemporaryDirectory() as folder:
                add(f"fit_{device}_{precision}", fit(Path(folder), device, precision, 64 if smoke else 128))
    if "step" in parts:
        rate = product_rate()
        add("product", {"tflops": rate / 1e12})
        for name in SIZES if not smoke else ("small",):
            for bfloat16, compiled in ((False, False), (True, False), (True, True)):
                mode = f"{'bfloat16' if bfloat16 else 'float32'}{'_compiled' if compiled else ''}"
                add(f"step_{name}_{mode}", step(name, bfloat16, compiled, rate, repeats))
                torch.cuda.empty_cache()
    if "attention" in parts:
        for name in ("medium", "xlarge") if not smoke else ("medium",):
            add(f"attention_{name}", attention(name, repeats))
    limits = {
        "gradients_gradient_error_float32": ("<=", 1e-5),
        "gradients_gradient_error_bfloat16": ("<=", 0.01),
    }
    report("gpu", figures, {key: limit for key, limit in limits.items() if key in figures})


if __name__ == "__main__":
    main()
