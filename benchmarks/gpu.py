"""What one GPU makes of the training: correctness beside the CPU, tokens a second, share of its matrix-product rate.

    python benchmarks/gpu.py [--small] [--parts gradients fit step attention]

Blocks are made up, and fed from memory: this looks at the device, `training.py` at the feeding. It needs torch and the
project's model, training code and configuration, nothing of Spark. Without a GPU it says so and ends with code 1.

- `gradients`: loss and gradient of one step, beside the CPU's.
- `fit`: the whole training of a small world, on the CPU and on the GPU in float32 and bfloat16; losses beside each
  other, and the artifact opened on the CPU.
- `step`: one training step (next moment and answers) of three sizes. FLOPs are those of the matrix products that
  torch counts; the rate to compare with is a bfloat16 product of 8192 x 8192 in the same run.
- `attention`: the dense mask that the model uses beside `flex_attention`, which leaves out what a block hides.
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
from blocks import DAYS, blocks
from common import command_line, report
from steps import loss, stacked, untrained
from torch.utils.flop_counter import FlopCounterMode

from lam_spark.config import TrainingConfig
from lam_spark.model.artifact import as_batch, open_artifact, read_artifact
from lam_spark.model.attention import attention_mask, query_event_mask
from lam_spark.model.transformer import ModelSize
from lam_spark.training import trainer
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.summary import TrainingSummary
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
# Width, layers, heads, blocks a step.
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
def made_blocks(count: int) -> list[Block]:
    """So many full blocks."""
    return blocks(LAYOUT, count)


def from_memory(files: Any, layout: Layout, seed: int | None, epoch: int) -> Iterator[Block]:
    """Stands for petastorm's reading, so that the device alone is looked at: row groups in the same kind of order."""
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


def fitted(folder: Path, device: str, precision: str, count: int) -> dict[str, Any]:
    """The whole training of a small world: what it reports."""
    chosen = made_blocks(count)
    table = pa.table({name: [block[name].ravel() for block in chosen] for name in chosen[0]})
    path = folder / "blocks.parquet"
    pq.write_table(table, path, row_group_size=32)
    spec = trainer.TrainingSpec(
        LAYOUT,
        ModelSize(64, 2, 4, 0.1),
        SETTINGS.model_copy(update={"precision": precision}),
        (f"file://{path}",),
        (f"file://{path}",),
        200 * MICROS_PER_DAY,
        (DAYS + 1) * MICROS_PER_DAY,
        (2.0,) * len(LAYOUT.numeric),
        (1.0,) * len(LAYOUT.numeric),
        ((0.0, 1.0, 2.0, 3.0, 4.0),) * len(LAYOUT.numeric),
        "reply",
        (1.0,),
        str(folder),
        {},
    )
    records: list[dict[str, Any]] = []
    with mock.patch("torch.cuda.is_available", return_value=device == "cuda"):
        loop = trainer.Trainer(spec, LocalGroup(), records.append)
    assert loop.device.type == device
    started = time.monotonic()
    digest = loop.fit()
    seconds = time.monotonic() - started
    artifact = open_artifact(*read_artifact(folder), digest)
    ends = [r for r in records if r["event"] == "epoch" and "validation loss" in r]
    before = [r["validation loss"] for r in ends if "validation AUC" not in r]
    summary = TrainingSummary.from_json(artifact.facts["training"])
    return {
        "seconds": seconds,
        "next_loss": before[-1],
        "validation_loss": summary.validation["loss"],
        "auc": summary.validation["AUC"],
        "tokens_per_second": summary.tokens / seconds,
    }


def compare_gradients(count: int) -> dict[str, float]:
    """Loss and gradient of one step on the GPU against the CPU, float32 and bfloat16."""
    block = stacked(LAYOUT, made_blocks(count))
    found: dict[str, tuple[float, torch.Tensor]] = {}
    for name, device, half in (("cpu", "cpu", False), ("gpu", "cuda", False), ("half", "cuda", True)):
        model = untrained(LAYOUT, ModelSize(64, 2, 4, 0.0)).to(device)
        value = loss(model, as_batch(block, torch.device(device)), half)
        value.backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.reshape(-1).cpu() for p in model.parameters() if p.grad is not None])
        found[name] = (float(value.detach()), gradient)
    (value, gradient), figures = found.pop("cpu"), {}
    for name, (other, theirs) in found.items():
        figures[f"loss_error_{name}"] = abs(other - value) / abs(value)
        figures[f"gradient_error_{name}"] = float((theirs - gradient).norm() / gradient.norm())
    return figures


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, the device waited for."""
    for _ in range(2):
        work()
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def product_rate() -> float:
    """FLOP/s of a bfloat16 matrix product of 8192 x 8192."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds_of(lambda: left @ right, 20)


def step(name: str, half: bool, compiled: bool, rate: float, repeats: int) -> dict[str, float]:
    """One training step of a size: the batch's way to the device included."""
    width, layers, heads, count = SIZES[name]
    model = untrained(LAYOUT, ModelSize(width, layers, heads, 0.1)).cuda()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    block, device = stacked(LAYOUT, made_blocks(count)), torch.device("cuda")
    events = int((block["window"] > 0).sum())

    def once() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(model, as_batch(block, device), half).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    once()
    with FlopCounterMode(display=False) as counter:
        once()
    if compiled:  # afterwards: what is compiled hides its products from the counter
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
    """Forward and backward of one layer's attention, bfloat16: dense mask, and flex_attention by blocks."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    width, _, heads, count = SIZES[name]
    batch = as_batch(stacked(LAYOUT, made_blocks(count)), torch.device("cuda"))
    mask = attention_mask(batch["window"], query_event_mask(batch))
    slots = mask.shape[1]
    made = [
        torch.randn(
            count, heads, slots, width // heads, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )
        for _ in range(3)
    ]

    def dense() -> None:
        F.scaled_dot_product_attention(*made, attn_mask=mask[:, None]).sum().backward()

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return mask[b, q, k]

    compiled = torch.compile(flex_attention)

    def blocked() -> Any:
        return create_block_mask(visible, count, None, slots, slots, device="cuda")

    by_blocks = blocked()

    def flex() -> None:
        compiled(*made, block_mask=by_blocks).sum().backward()

    with torch.no_grad():
        same = F.scaled_dot_product_attention(*made, attn_mask=mask[:, None])
        other = compiled(*made, block_mask=by_blocks)
        gap = float((same - other).abs().max())
    return {
        "dense_ms": seconds_of(dense, repeats) * 1e3,
        "flex_ms": seconds_of(flex, repeats) * 1e3,
        "mask_ms": seconds_of(blocked, repeats) * 1e3,
        "seen_share": float(mask.float().mean()),
        "gap": gap,
    }


def main() -> None:
    """Run all parts; each is printed as soon as it is known."""
    parser = command_line(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args()
    small, parts = asked.small, asked.parts
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no CUDA device here")
    try:
        import petastorm  # noqa: F401
    except ImportError:
        trainer.block_batches.__globals__["_row_groups"] = from_memory
        print("petastorm is not here: row groups are read by pyarrow", flush=True)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda, flush=True)
    figures: dict[str, float] = {}

    def tell(part: str, values: dict[str, float]) -> None:
        print(part, json.dumps({key: round(value, 6) for key, value in values.items()}), flush=True)
        figures.update({f"{part}_{key}": value for key, value in values.items()})

    if "gradients" in parts:
        tell("gradients", compare_gradients(8))
    if "fit" in parts:
        with tempfile.TemporaryDirectory() as folder:
            for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
                tell(
                    f"fit_{device}_{precision}", fitted(Path(folder), device, precision, 64 if small else 128)
                )
    if "step" in parts:
        rate = product_rate()
        tell("product", {"tflops": rate / 1e12})
        for name in SIZES if not small else ("small",):
            for half, compiled in ((False, False), (True, False), (True, True)):
                how = f"{'bfloat16' if half else 'float32'}{'_compiled' if compiled else ''}"
                tell(f"step_{name}_{how}", step(name, half, compiled, rate, 5 if small else 10))
                torch.cuda.empty_cache()
    if "attention" in parts:
        for name in ("medium", "xlarge") if not small else ("medium",):
            tell(f"attention_{name}", attention(name, 5 if small else 10))
    report("gpu", figures, {})


if __name__ == "__main__":
    main()
