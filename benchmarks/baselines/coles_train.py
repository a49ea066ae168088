"""Trains CoLES of pytorch-lifestream and writes one embedding a query; started by `coles.py`.

    python coles_train.py FOLDER SEED

Runs in the library's own environment, so it imports nothing of this project. FOLDER holds `events.parquet`, sorted by
row and time: `row` (household), `time` (days), `learn` (before the test period), `cat_*` (integers from 1), `num_*`;
and `queries.parquet`: `row`, `time`. Writes `embeddings.npy`: (queries, HIDDEN) float32, the encoder's state after
the last event before each query, zeros where there is none.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from ptls.data_load.utils import collate_feature_dict
from ptls.frames.coles import ColesDataset, CoLESModule
from ptls.frames.coles.split_strategy import SampleSlices
from ptls.nn import RnnSeqEncoder, TrxEncoder

HIDDEN, EPOCHS, BATCH, SHORTEST, LONGEST = 128, 15, 64, 25, 200
# PyTorch's GRU on two busy cores took thirty times as long as on one.
torch.set_num_threads(1)
# Households a batch when the states are computed.
_BATCH_HOUSEHOLDS = 16


def household_tensors(events: pd.DataFrame) -> dict[int, dict[str, torch.Tensor]]:
    """Household -> its events in the library's format."""
    kinds = {name: np.int64 if name.startswith("cat_") else np.float32 for name in events if "_" in name}
    columns = {name: torch.from_numpy(events[name].to_numpy(kind)) for name, kind in kinds.items()}
    columns["event_time"] = torch.from_numpy(events.time.to_numpy(np.float64))
    rows, starts = np.unique(events.row.to_numpy(), return_index=True)
    ends = [*starts[1:], len(events)]
    return {
        int(row): {name: column[start:end] for name, column in columns.items()}
        for row, start, end in zip(rows, starts, ends, strict=True)
    }


def make_encoder(events: pd.DataFrame) -> RnnSeqEncoder:
    """The library's usual encoder of card transactions: embeddings, scaled numbers, a GRU."""
    sizes = {name: int(events[name].max()) + 1 for name in events if name.startswith("cat_")}
    fields = TrxEncoder(
        embeddings={name: {"in": size, "out": min(32, max(4, size // 8))} for name, size in sizes.items()},
        numeric_values={name: "log" for name in events if name.startswith("num_")},
        embeddings_noise=0.003,
    )
    return RnnSeqEncoder(trx_encoder=fields, hidden_size=HIDDEN, type="gru")


def train(events: pd.DataFrame, model: RnnSeqEncoder) -> RnnSeqEncoder:
    """Train on the events before the test period."""
    module = CoLESModule(
        seq_encoder=model,
        optimizer_partial=partial(torch.optim.Adam, lr=2e-3),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.8),
    )
    households = household_tensors(events[events.learn]).values()
    long_enough = [h for h in households if len(h["event_time"]) >= SHORTEST]
    slices = ColesDataset(long_enough, SampleSlices(split_count=5, cnt_min=SHORTEST, cnt_max=LONGEST))
    loader: Any = torch.utils.data.DataLoader(
        slices, batch_size=BATCH, shuffle=True, drop_last=True, collate_fn=ColesDataset.collate_fn
    )
    trainer = pytorch_lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return module.seq_encoder.eval()


def embed(model: RnnSeqEncoder, events: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
    """(queries, HIDDEN): the state after the last event before each query."""
    result = np.zeros((len(queries), HIDDEN), np.float32)
    model.is_reduce_sequence = False
    households = household_tensors(events)
    queries_of = {int(row): group for row, group in queries.reset_index(drop=True).groupby("row")}
    order = sorted((r for r in queries_of if r in households), key=lambda r: len(households[r]["event_time"]))
    for start in range(0, len(order), _BATCH_HOUSEHOLDS):
        rows = order[start : start + _BATCH_HOUSEHOLDS]
        with torch.inference_mode():
            states = model(collate_feature_dict([households[row] for row in rows])).payload
        for index, row in enumerate(rows):
            own = queries_of[row]
            seen = np.searchsorted(households[row]["event_time"].numpy(), own.time.to_numpy())
            has_history = seen > 0
            result[own.index.to_numpy()[has_history]] = states[
                index, torch.from_numpy(seen[has_history] - 1)
            ].numpy()
    return result


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    pytorch_lightning.seed_everything(seed, verbose=False)
    events = pd.read_parquet(folder / "events.parquet")
    queries = pd.read_parquet(folder / "queries.parquet")
    started = time.monotonic()
    model = train(events, make_encoder(events))
    print(f"CoLES, seed {seed}: trained in {time.monotonic() - started:.0f} s", flush=True)
    np.save(folder / "embeddings.npy", embed(model, events, queries))


if __name__ == "__main__":
    main()
