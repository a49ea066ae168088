"""A sample report context with the proportions of the Complete Journey data set."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

from lam_spark.evaluation.calibration import wilson_interval
from lam_spark.report.content import (
    Calibration,
    CalibrationBin,
    ConsentCount,
    Contact,
    ContactList,
    Decile,
    FunnelStep,
    Headline,
    HeldOut,
    HistogramBin,
    Loss,
    Nouns,
    ProposalCount,
    Ranking,
    ReportContext,
    SourceCount,
    StageCost,
    Training,
    VersionGroup,
)
from lam_spark.training.summary import CurvePoint

EXAMPLES, POSITIVES = 1653, 266


def deciles(hits: tuple[float, ...]) -> tuple[Decile, ...]:
    """Ten deciles of 165.3 contacts each, with these numbers of redemptions."""
    base_rate, size, cumulative, result = POSITIVES / EXAMPLES, EXAMPLES / 10, 0.0, []
    for number, positives in enumerate(hits, start=1):
        cumulative += positives
        rate = positives / size
        result.append(Decile(number, size, positives, rate, rate / base_rate, cumulative / sum(hits)))
    return tuple(result)


MODEL = Ranking(
    "lam", "model", "the fine-tuned model's probability", 0.834, 0.809, 0.858,
    deciles((109, 61, 36, 22, 14, 10, 6, 4, 3, 1)), lift_interval=(3.5, 4.7),
)  # fmt: skip
BASELINE = Ranking(
    "previous redemptions", "baseline", "coupons redeemed before the campaign, then recency", 0.751, 0.718, 0.783,
    deciles((85, 52, 35.5, 24.5, 18, 15, 12, 10, 8, 6)), lift_interval=(2.6, 3.9), lift_difference=(0.125, 1.75),
)  # fmt: skip
RANDOM = Ranking("random order", "random", "a shuffle", 0.5, None, None, deciles((26.6,) * 10))


def bins() -> tuple[CalibrationBin, ...]:
    """Ten calibration bins, lowest probability first."""
    out = []
    for predicted, hits in zip(
        (0.012, 0.019, 0.027, 0.041, 0.062, 0.088, 0.131, 0.205, 0.352, 0.671),
        (1, 3, 4, 7, 10, 15, 23, 36, 58, 109),
        strict=True,
    ):
        low, high = wilson_interval(hits / 165, 165)
        out.append(CalibrationBin(predicted, hits / 165, low, high, 165))
    return tuple(out)


def curves() -> tuple[CurvePoint, ...]:
    """Two phases with losses, one of them also with AUC, and a refit."""
    out = [CurvePoint("pre-training", i / 4, "loss", 6.1 * 0.93**i + 2.2) for i in range(1, 33)]
    out += [
        CurvePoint("pre-training", float(i), "validation loss", 6.0 * 0.76**i + 2.35) for i in range(1, 9)
    ]
    out += [CurvePoint("fine-tuning", float(i), "loss", 0.44 * 0.9**i + 0.09) for i in range(1, 13)]
    out += [
        CurvePoint("fine-tuning", float(i), "validation loss", 0.33 + 0.09 * 0.6**i + 0.0012 * i**1.5)
        for i in range(1, 13)
    ]
    out += [
        CurvePoint("fine-tuning", float(i), "validation AUC", 0.842 - 0.16 * 0.6**i) for i in range(1, 13)
    ]
    out += [CurvePoint("refit", float(i), "loss", 0.43 * 0.9**i + 0.1) for i in range(1, 9)]
    return tuple(out)


OFFERS = (
    ("campaign-26", "Coupons on 181 grocery products, 12 November to 24 December", 231, 0.382),
    ("campaign-27", "Coupons on 40 meat and deli products, 8 December to 9 January", 164, 0.291),
    ("campaign-24", "Coupons on 122 drug and beauty products", 78, 0.263),
    ("campaign-25", "Coupons on 17 seasonal products", 27, 0.224),
)


def full_context() -> ReportContext:
    """A full report with the proportions of the Complete Journey data set."""
    return ReportContext(
        title="Which households to send coupons to this November",
        data_set="Complete Journey (dunnhumby)",
        as_of=date(2017, 11, 11),
        generated_at=datetime(2026, 3, 14, 10, 30, tzinfo=timezone(timedelta(hours=1))),
        run_id="20260314T093000Z-5c1e",
        target="redeems a coupon of the campaign within its running time",
        nouns=Nouns("household", "households", "contact", "contacts", "redeemed"),
        headlines=(
            Headline("Households on the list", "500", "of 1,900 that may be contacted; 2,469 are known"),
            Headline("Lift of the top decile", "4.1\u00d7", "the redemption rate of the average contact"),
            Headline("Redemptions expected", "163", "if the probabilities are right: 33% of the list; 16% is average"),
        ),
        held_out=HeldOut(date(2017, 8, 8), date(2017, 11, 11), EXAMPLES, POSITIVES, (MODEL, BASELINE, RANDOM)),
        calibration=Calibration(bins(), 0.0981, 0.1350, 0.0113),
        contact_list=ContactList(
            path="/data/lam/deliveries/2017-11-11/contacts.csv",
            customers=500,
            capacity=500,
            by_proposal=tuple(ProposalCount(*offer) for offer in OFFERS),
            head=tuple(
                Contact(
                    i,
                    f"{i * 7919 % 9973:04x}c0ffee{i:02x}decade5eed0123456789",
                    OFFERS[(i * i) % 3][0],
                    OFFERS[(i * i) % 3][1],
                    0.871 - 0.013 * i,
                )
                for i in range(1, 16)
            ),
            score_histogram=tuple(
                HistogramBin(0.1 + 0.05 * i, 0.15 + 0.05 * i, n)
                for i, n in enumerate((58, 96, 88, 71, 52, 39, 28, 21, 16, 12, 8, 6, 3, 1, 1))
            ),
        ),
        funnel=(
            FunnelStep("raw rows read", 1_473_000, "rows"),
            FunnelStep(
                "events after cleaning", 1_468_527, "events",
                (Loss("exact repeats of an event already there", 3_126), Loss("no timestamp", 214),
                 Loss("quantity or price below zero", 1_133)),
                "One row becomes one event.",
            ),
            FunnelStep("events before the cut-off day", 1_270_904, "events",
                       (Loss("after 11 November 2017", 197_623),)),
            FunnelStep("households behind these events", 2_469, "customers"),
            FunnelStep("with enough history", 2_318, "customers", (Loss("fewer than 20 events", 151),)),
            FunnelStep(
                "that may be contacted", 1_900, "customers",
                (Loss("opted out of marketing by post", 201), Loss("never asked", 188),
                 Loss("contradictory consent records", 29)),
            ),
            FunnelStep("household and offer pairs scored", 7_600, "proposals",
                       note="Four campaigns run in the period."),
            FunnelStep("best offer of each household", 1_900, "proposals",
                       (Loss("a better offer for the same household", 5_700),)),
            FunnelStep("on the list", 500, "customers", (Loss("below the 500 places of the list", 1_400),)),
        ),
        sources=(
            SourceCount("transactions", 1_469_307, 1_465_008, 3_101, 1_198),
            SourceCount("coupon redemptions", 2_102, 1_964, 25, 113),
            SourceCount("campaign mailings", 1_591, 1_555, 0, 36),
        ),
        consent=(
            ConsentCount("marketing by post", 2_012, 224, 201, 32),
            ConsentCount("profiling", 2_239, 96, 118, 16),
        ),
        training=Training(
            curves(),
            (("Parameters", "4.2 million"), ("Events seen", "11.3 million"), ("Workers", "2"),
             ("Device", "CPU, 2 cores"), ("Time", "14 min 05 s")),
        ),
        stages=(
            StageCost("ingest and clean", 48.2, 1.9), StageCost("build sequences", 31.0, 2.4),
            StageCost("pre-train", 512.9, 3.1), StageCost("fine-tune", 284.4, 2.8),
            StageCost("evaluate", 12.6, 1.2), StageCost("score and deliver", 9.4, None),
        ),
        versions=(
            VersionGroup("Tables", (("events", "version 12"), ("contacts", "version 3"))),
            VersionGroup("Model", (("alias", "champion"), ("sha256", "9f2c" * 16))),
            VersionGroup("Code", (("git commit", "0a1b2c3d" * 5), ("config", "sha256:77aa" + "0" * 60))),
            VersionGroup("Packages", (("pyspark", "4.0.5"), ("torch", "2.12.1"), ("horovod", "0.28.1"))),
        ),
        notes=(
            "The data set has no consent records: the ledger of this demo is drawn with a fixed seed.",
            "The retailer chose the recipients of past campaigns: the held-out contacts are not a random sample.",
        ),
    )  # fmt: skip


def with_rankings(context: ReportContext, *rankings: Ranking) -> HeldOut:
    """The context's held-out period with other rankings."""
    assert context.held_out is not None
    return replace(context.held_out, rankings=rankings)
