"""Treatment response in the synthetic telecom data: the model compared with boosting, chains and the ground truth.

    python -m benchmarks.quality.treatment_response [--smoke] [--folder FOLDER] [--seeds 0 1 2 3 4]

100,000 customers (`--smoke`: 2,000, small model) through all stages up to the snapshot, then one training per seed
(`--smoke`: one), each about half an hour on two cores. With `--folder` finished parts are stored, and the same command
resumes. The target covers both arms of telemarketing: treated customers and the randomised control arm.

All figures are of the same test contacts; the model's are means over the seeds (`..._low`, `..._high`: extremes;
`..._seeds_averaged`: of the mean prediction). `difference_...`: first seed against LightGBM, 95 % over customers.

- AUC of an order by the treated. `share_of_gap`: how much of the gap between the best counts (truth file, or LightGBM
  on counts if better) and the best possible prediction is attained.
- Lift of the top decile of the treated.
- Uplift (prediction if treated minus prediction in the control arm) against the true effect: rank correlation, and the
  Qini area by true effects as a share of the best ranking's.
- `separates_...`: AUC of separating ground-truth groups by the predictions: the two orders, silence, parents (positive
  effect of a call), the reluctant (negative effect).
- Accuracy of the next action, compared with the commonest action and Markov chains.

LightGBM gets counts by action, touchpoint, place, subject, item and hour over 7/28/91/365 days, money, demographics,
the offer, and days since each event (`counts`: without the last). `informed` and `truth` are LightGBM with features
that use the generator's code and the ground-truth state (`benchmarks/baselines/telecom.py`): what is attainable at all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.baselines.telecom import Histories, predict_both_arms
from benchmarks.common import SMOKE_TRAINING, command_line, origin_digest, report, resumable_folder
from benchmarks.support.next_actions import NextActions
from benchmarks.support.telecom_workspace import BothArms, TelecomWorkspace
from lam_spark.training_data.columns import layout_of

Array = npt.NDArray[Any]
# Bootstrap samples of the customers.
SAMPLES = 200
TARGETS = {
    "share_of_gap": (">=", 0.9),
    "lift_lam": (">=", 2.0),
    "lift_vs_lightgbm": (">=", 1.0),
    "next_action_vs_chains": (">=", 1.0),
}


def qini(score: Array, effect: Array) -> float:
    """Area between the true cumulative gain in the order of a score and a random order; ties are one step."""
    values, group = np.unique(-score, return_inverse=True)
    share = np.bincount(group, minlength=len(values)) / len(score)
    gain = np.concatenate([[0.0], np.cumsum(np.bincount(group, effect, len(values))) / len(score)])
    return float((share * (gain[1:] + gain[:-1]) / 2).sum() - gain[-1] / 2)


def rank_correlation(score: Array, effect: Array) -> float:
    """Spearman's; 0 for a constant score."""
    return float(spearmanr(score, effect).statistic) if np.ptp(score) > 0 else 0.0


def lift(score: Array, label: Array) -> float:
    """Order rate of the top decile over the overall order rate."""
    top = np.argsort(-score, kind="stable")[: len(score) // 10]
    return float(label[top].mean() / label.mean())


class TestContacts:
    """The held-out contacts with their ground truth."""

    __test__ = False  # not a test class

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        self.treated = (rows.arm == "treated").to_numpy()
        self.label = rows.label.to_numpy()[self.treated]
        self.true_effect = rows.true_effect.to_numpy()
        self.best_qini = qini(rows.known_effect.to_numpy(), self.true_effect)

    def measures(self, predictions: BothArms) -> dict[str, float]:
        """Measures of the predictions for both arms."""
        treated, control = predictions
        return {
            "auc": float(roc_auc_score(self.label, treated[self.treated])),
            "lift": lift(treated[self.treated], self.label),
            "effect_correlation": rank_correlation(treated - control, self.true_effect),
            "qini_share": qini(treated - control, self.true_effect) / self.best_qini,
        }

    def separates(self, predictions: BothArms) -> dict[str, float]:
        """AUC of separating states by the prediction, and people by the uplift (log odds)."""
        treated, control = predictions
        state, response, uplift = self.rows.state, logit(treated), logit(treated) - logit(control)
        areas = {}
        for name, higher, lower in (
            ("order", "inquire_buy_browse", "browse_inquire_buy"),
            ("silence", "compare_then_silent", "compare_and_go_on"),
        ):
            rows = state.isin([higher, lower]).to_numpy()
            areas[name] = float(roc_auc_score(state[rows] == higher, response[rows]))
        areas["parents"] = float(roc_auc_score(self.rows.parent, uplift))
        areas["reluctant"] = float(roc_auc_score(self.rows.reluctant, -uplift))
        return areas

    def differences(self, ours: BothArms, theirs: BothArms) -> dict[str, float]:
        """95 % intervals of our advantage in each measure, by a paired bootstrap over customers."""
        _, member = np.unique(self.rows.customer_key.to_numpy(), return_inverse=True)
        rng, samples = np.random.default_rng(0), []
        for _ in range(SAMPLES):
            times = rng.poisson(1.0, member.max() + 1)[member]
            rows = np.repeat(np.arange(len(member)), times)
            sample = TestContacts(self.rows.iloc[rows])
            own, other = (sample.measures((a[rows], b[rows])) for a, b in (ours, theirs))
            samples.append({name: own[name] - other[name] for name in own})
        table = pd.DataFrame(samples)
        return {
            f"difference_{name}_{end}": float(np.percentile(table[name], percent))
            for name in table
            for end, percent in (("low", 2.5), ("high", 97.5))
        }


def boosting_baselines(
    workspace: TelecomWorkspace, contacts: pd.DataFrame
) -> tuple[dict[str, BothArms], float]:
    """Baseline -> predictions for both arms, and the seconds of the first LightGBM."""
    started = time.monotonic()
    histories = Histories(contacts, workspace.write_events())
    table, counts = histories.features()
    print(f"  {len(contacts):,} contacts, {table.shape[1]} features in {time.monotonic() - started:.0f} s")
    every_row = np.ones(len(contacts), bool)
    started = time.monotonic()
    predictions = {"lightgbm": predict_both_arms(contacts, table, every_row)}
    seconds = time.monotonic() - started
    predictions["counts"] = predict_both_arms(contacts, table[counts], every_row)
    treated, control = (
        predict_both_arms(contacts, table, (contacts.arm == arm).to_numpy()) for arm in ("treated", "control")
    )
    predictions["two_models"] = (treated[0], control[1])
    predictions["informed"] = predict_both_arms(contacts, histories.informed_features(), every_row)
    predictions["truth"] = predict_both_arms(contacts, histories.truth_features(contacts), every_row)
    return predictions, seconds


def model_figures(by_seed: list[dict[str, float]]) -> dict[str, float]:
    """Mean and extremes of the model's measures over the seeds."""
    figures: dict[str, float] = {"train_seconds": float(np.median([f["train_seconds"] for f in by_seed]))}
    for name in ("auc", "lift", "effect_correlation", "qini_share", "next_action_lam"):
        values = [figures_of_seed[name] for figures_of_seed in by_seed]
        key = name if name.endswith("lam") else f"{name}_lam"
        figures |= {key: float(np.mean(values)), f"{key}_low": min(values), f"{key}_high": max(values)}
    return figures


def all_figures(
    test: TestContacts, ours: list[BothArms], by_seed: list[dict[str, float]], baselines: dict[str, BothArms]
) -> dict[str, float]:
    """Measures of the model, the baselines and the ground truth on the test contacts."""
    figures: dict[str, float] = {
        "test_treated": int(test.treated.sum()),
        "test_orders": float(test.label.sum()),
    }
    for name in ("best", "best_before_churn", "best_by_counts"):
        probability = test.rows[name].to_numpy()[test.treated]
        figures[f"auc_{name}"] = float(roc_auc_score(test.label, probability))
    figures |= model_figures(by_seed)
    sides = dict(baselines)
    if len(ours) > 1:
        treated, control = np.mean(ours, axis=0)
        sides["seeds_averaged"] = (treated, control)
    for name, predictions in sides.items():
        figures |= {f"{key}_{name}": value for key, value in test.measures(predictions).items()}
    figures |= test.differences(ours[0], baselines["lightgbm"])
    separates = pd.DataFrame([test.separates(predictions) for predictions in ours]).mean()
    figures |= {f"separates_{name}_lam": float(value) for name, value in separates.items()}
    for name, value in test.separates(baselines["lightgbm"]).items():
        figures[f"separates_{name}_lightgbm"] = value
    known_effect = test.rows.known_effect.to_numpy()
    figures["effect_correlation_best"] = rank_correlation(known_effect, test.true_effect)
    figures["qini_share_by_response"] = qini(ours[0][0], test.true_effect) / test.best_qini
    by_counts = max(figures["auc_best_by_counts"], figures["auc_counts"])
    for limit in ("best", "truth", "informed"):
        share = (figures["auc_lam"] - by_counts) / (figures[f"auc_{limit}"] - by_counts)
        figures["share_of_gap" if limit == "best" else f"share_of_gap_to_{limit}"] = share
    figures["lift_vs_lightgbm"] = figures["lift_lam"] / figures["lift_lightgbm"]
    return figures


def main() -> None:
    parser = command_line(__doc__, with_folder=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="of the trainings")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    size, seeds = (2_000, arguments.seeds[:1]) if smoke else (100_000, arguments.seeds)
    with resumable_folder(arguments.folder, "telecom-", origin_digest(smoke)) as folder:
        workspace = TelecomWorkspace(folder, size, *(SMOKE_TRAINING if smoke else ()))
        by_seed = [workspace.train(seed) for seed in seeds]
        workspace.open()
        contacts = workspace.contacts()
        baselines, boosting_seconds = boosting_baselines(workspace, contacts)
        test = TestContacts(contacts[contacts.split == "test"])
        ours = [workspace.predictions(seed, test.rows) for seed in seeds]
        ctx = workspace.ctx
        layout = layout_of(ctx.config, ctx.tables.read("vocabulary"))
        chains = NextActions(ctx, layout).of_chains()
    by_seed = [f | test.measures(predictions) for f, predictions in zip(by_seed, ours, strict=True)]
    for seed, own in zip(seeds, by_seed, strict=True):
        print(f"  seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in own.items()))
    figures = {
        "customers": size,
        "seeds": len(seeds),
        **all_figures(test, ours, by_seed, baselines),
        **chains,
    }
    figures["next_actions"] = by_seed[0]["next_actions"]
    figures["next_action_vs_chains"] = figures["next_action_lam"] / max(chains.values())
    figures["lightgbm_seconds"] = boosting_seconds
    report("treatment_response", figures, TARGETS)


if __name__ == "__main__":
    main()
