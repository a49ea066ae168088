"""Trains pytorch-lifestream's CoLES and gives a vector a question; `coles.py` runs it in that library's environment.

    python coles_train.py FOLDER SEED

FOLDER holds `events.parquet` (sorted by row and time: `row` (the household), `time` (days), `learn` (before the test
period), `cat_*` (integers from 1), `num_*`) and `asked.parquet` (`row`, `time`); `vectors.npy` is written there:
(questions, HIDDEN) float32, the encoder's state after the last event before each question, zeros where there is none.
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
# A step of a recurrent layer is small: a second thread waits more than it helps, and a busy one waits for seconds.
torch.set_num_threads(1)
# Households whose states are computed at once.
_AT_ONCE = 16


def records(events: pd.DataFrame) -> dict[int, dict[str, torch.Tensor]]:
    """Household -> its events as the library takes them."""
    kinds = {name: np.int64 if name.startswith("cat_") else np.float32 for name in events if "_" in name}
    columns = {name: torch.from_numpy(events[name].to_numpy(kind)) for name, kind in kinds.items()}
    columns["event_time"] = torch.from_numpy(events.time.to_numpy(np.float64))
    rows, starts = np.unique(events.row.to_numpy(), return_index=True)
    ends = [*starts[1:], len(events)]
    return {
        int(row): {name: column[start:end] for name, column in columns.items()}
        for row, start, end in zip(rows, starts, ends, strict=True)
    }


def encoder(events: pd.DataFrame) -> RnnSeqEncoder:
    """The library's usual encoder of card transactions: embeddings, scaled numbers, a GRU."""
    sizes = {name: int(events[name].max()) + 1 for name in events if name.startswith("cat_")}
    fields = TrxEncoder(
        embeddings={name: {"in": size, "out": min(32, max(4, size // 8))} for name, size in sizes.items()},
        numeric_values={name: "log" for name in events if name.startswith("num_")},
        embeddings_noise=0.003,
    )
    return RnnSeqEncoder(trx_encoder=fields, hidden_size=HIDDEN, type="gru")


def trained(events: pd.DataFrame, model: RnnSeqEncoder) -> RnnSeqEncoder:
    """Train on the events of before the test period."""
    module = CoLESModule(
        seq_encoder=model,
        optimizer_partial=partial(torch.optim.Adam, lr=2e-3),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.8),
    )
    known = [r for r in records(events[events.learn]).values() if len(r["event_time"]) >= SHORTEST]
    slices = ColesDataset(known, SampleSlices(split_count=5, cnt_min=SHORTEST, cnt_max=LONGEST))
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


def vectors(model: RnnSeqEncoder, events: pd.DataFrame, asked: pd.DataFrame) -> np.ndarray:
    """(questions, HIDDEN): the state after the last event before each question."""
    found = np.zeros((len(asked), HIDDEN), np.float32)
    model.is_reduce_sequence = False
    known = records(events)
    questions = {int(row): group for row, group in asked.reset_index(drop=True).groupby("row")}
    wanted = sorted((row for row in questions if row in known), key=lambda row: len(known[row]["event_time"]))
    for start in range(0, len(wanted), _AT_ONCE):
        rows = wanted[start : start + _AT_ONCE]
        with torch.inference_mode():
            states = model(collate_feature_dict([known[row] for row in rows])).payload
        for place, row in enumerate(rows):
            own = questions[row]
            seen = np.searchsorted(known[row]["event_time"].numpy(), own.time.to_numpy())
            some = seen > 0
            found[own.index.to_numpy()[some]] = states[place, torch.from_numpy(seen[some] - 1)].numpy()
    return found


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    pytorch_lightning.seed_everything(seed, verbose=False)
    events = pd.read_parquet(folder / "events.parquet")
    asked = pd.read_parquet(folder / "asked.parquet")
    started = time.monotonic()
    model = trained(events, encoder(events))
    print(f"CoLES, seed {seed}: trained in {time.monotonic() - started:.0f} s", flush=True)
    np.save(folder / "vectors.npy", vectors(model, events, asked))


if __name__ == "__main__":
    main()
