"""A workspace of the synthetic telecom data: stages, trainings, held-out predictions, contacts with ground truth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd
from pyspark.sql import functions as F

from benchmarks.baselines.telecom import TRUTH_COLUMNS
from benchmarks.common import (
    STAGES_UP_TO_SNAPSHOT,
    TELECOM_CONF,
    load,
    open_context,
    run_stage,
    stored_secret,
)
from benchmarks.support.next_actions import NextActions
from benchmarks.support.workspace import pseudonyms
from lam_spark.scoring.udf import RegisteredModel, load_registered_model, predict_probabilities
from lam_spark.training_data.columns import collect_queries, event_columns

Array = npt.NDArray[Any]
# Predictions for both arms, in the order of the test contacts.
BothArms = tuple[Array, Array]
BOTH_ARMS = "targets.upgrade.population=\"action IN ('propose', 'hold_back')\""
HORIZON = pd.Timedelta(days=28)


class TelecomWorkspace:
    """Runs what is missing; finished parts in the folder are not repeated.

    Args:
        folder: of the workspace and of the results.
        customers: number of synthetic customers.
        settings: further configuration overrides.
    """

    def __init__(self, folder: Path, customers: int, *settings: str) -> None:
        self.secret = os.environ["LAM_SPARK_SECRET"] = stored_secret(folder)
        self.folder, self.root = folder, folder / "telecom"
        self.settings = (BOTH_ARMS, f"fetch.arguments.customers={customers}", *settings)
        finished = folder / "stages.json"
        seconds: dict[str, float] = json.loads(finished.read_text()) if finished.exists() else {}
        for name in STAGES_UP_TO_SNAPSHOT:
            if name not in seconds:
                seconds[name] = self._stage(name)
                finished.write_text(json.dumps(seconds))

    def _stage(self, name: str, *settings: str) -> float:
        """Run a stage; its seconds."""
        record = run_stage(name, TELECOM_CONF, self.root, *self.settings, *settings)
        print(f"  {name:<10} {record['seconds']:7.0f} s  {record['message']}", flush=True)
        return float(record["seconds"])

    def open(self) -> None:
        """Start the session; not during a training, which needs the memory."""
        self.ctx = open_context(load(TELECOM_CONF, self.root, *self.settings))

    def train(self, seed: int) -> dict[str, float]:
        """Train with a seed and store its predictions; `train_seconds` and the next-action figures."""
        path = self.folder / f"seed_{seed}.json"
        if path.exists():
            stored: dict[str, float] = json.loads(path.read_text())
            return stored
        seconds = self._stage("train", f"training.seed={seed}")
        self.open()
        config = self.ctx.config
        model = load_registered_model(self.ctx.tables, config, [config.scoring.target])
        self._predict(model).to_parquet(self._predictions_file(seed))
        next_actions = NextActions(self.ctx, model.layout)
        figures = next_actions.of_model(model.weights, model.card, model.digest)
        figures |= {"train_seconds": seconds}
        self.ctx.spark.stop()
        path.write_text(json.dumps(figures))
        return figures

    def _predictions_file(self, seed: int) -> Path:
        return self.folder / f"predictions_{seed}.parquet"

    def _predict(self, model: RegisteredModel) -> pd.DataFrame:
        """Grain: a held-out contact, with the probabilities of an order if `treated` and in the `control` arm."""
        tables, target = self.ctx.tables, self.ctx.config.scoring.target
        held_out = tables.read("examples").where("split = 'test'")
        actions = tables.read("vocabulary").where("field = 'action'")
        ids = {row["value"]: row["token_id"] for row in actions.toLocalIterator()}
        sequences = tables.read("sequences").select("customer_key", *event_columns(model.layout))
        arms = []
        for arm, action in (("treated", "propose"), ("control", "hold_back")):
            queries = collect_queries(held_out.withColumn("action", F.lit(ids[action])), model.layout)
            rows = predict_probabilities(sequences.join(queries, "customer_key"), model, target)
            frame = rows.select("customer_key", "query_id", "probability").toPandas()
            arms.append(frame.set_index(["customer_key", "query_id"])["probability"].rename(arm))
        return pd.concat(arms, axis=1).reset_index()

    def predictions(self, seed: int, test: pd.DataFrame) -> BothArms:
        """The model's predictions for both arms, in the order of the test contacts."""
        stored = pd.read_parquet(self._predictions_file(seed))
        joined = test[["customer_key", "query_id"]].merge(stored, how="left", validate="one_to_one")
        assert joined.notna().all().all(), "expected a prediction for every held-out contact"
        return joined.treated.to_numpy(), joined.control.to_numpy()

    def contacts(self) -> pd.DataFrame:
        """Grain: a contact, with split, label, arm and ground truth."""
        examples = self.ctx.tables.read("examples")
        rows = examples.select("customer_key", "query_id", "as_of", "split", "label", "arm").toPandas()
        rows["as_of"] = rows.as_of.astype("datetime64[us]")
        truth = self._truth()
        joined = rows.merge(truth, on=["customer_key", "as_of"], how="left")
        assert len(joined) == len(rows), "expected one row of the truth file a contact"
        assert joined.best.notna().all(), "expected every contact in the truth file"
        return joined

    def _truth(self) -> pd.DataFrame:
        """Grain: a contact of the truth file, with probabilities and effects.

        Columns: `best` (probability of an order if treated), its means `best_by_counts` (over what counts can tell) and
        `best_before_churn` (without knowing who will leave), `true_effect`, `known_effect`, `TRUTH_COLUMNS`.
        """
        queries = pd.read_parquet(self.root / "truth/queries")
        columns = ["customer_id", "parent", "reluctant", "churn_at"]
        people = pd.read_parquet(self.root / "truth/customers", columns=columns)
        queries = queries[queries.arm.notna()].merge(people, on="customer_id", validate="many_to_one")
        stays = (queries.churn_at.isna() | (queries.churn_at >= queries["at"] + HORIZON)).astype(float)
        queries["best"] = queries.p_treated * stays
        queries["true_effect"] = queries.effect * stays
        unordered = queries.state.replace({"browse_inquire_buy": "triple", "inquire_buy_browse": "triple"})
        known = [queries.parent, queries.reluctant, queries.offer == "family"]
        queries["best_by_counts"] = queries.groupby([unordered, *known])["best"].transform("mean")
        by_state = queries.groupby([queries.state, *known])
        queries["best_before_churn"] = by_state["best"].transform("mean")
        queries["known_effect"] = by_state["true_effect"].transform("mean")
        queries["customer_key"] = pseudonyms(self.secret, queries.customer_id)
        truth = queries.rename(columns={"at": "as_of"})
        truth["as_of"] = truth.as_of.dt.tz_convert(None).astype("datetime64[us]")
        columns = ["best", "best_by_counts", "best_before_churn", "true_effect", "known_effect", "offer"]
        return truth[["customer_key", "as_of", *columns, *TRUTH_COLUMNS]]

    def write_events(self) -> Path:
        """Write the events of the contacted customers as plain Parquet for the baselines."""
        contacted = self.ctx.tables.read("examples").select("customer_key").distinct()
        events = self.ctx.tables.read("events").join(contacted, "customer_key", "left_semi")
        folder = self.folder / "events"
        events.drop("attributes").write.mode("overwrite").parquet(str(folder))
        return folder
