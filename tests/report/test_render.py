"""The report renderer, on a context with the proportions of the Complete Journey data set."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from lam_spark.evaluation.ranking import wilson_interval
from lam_spark.report import charts
from lam_spark.report import text as words
from lam_spark.report.content import (
    Calibration,
    CalibrationBin,
    ConsentCount,
    Contact,
    ContactList,
    CurvePoint,
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
from lam_spark.report.render import render, write_report

EXAMPLES, POSITIVES = 1653, 266
VOID = {"meta", "br", "link", "img", "hr", "input"}


def deciles(hits: tuple[float, ...]) -> tuple[Decile, ...]:
    """Ten tenths of 165.3 contacts with these many redemptions."""
    base, size, done, out = POSITIVES / EXAMPLES, EXAMPLES / 10, 0.0, []
    for index, hit in enumerate(hits, start=1):
        done += hit
        out.append(Decile(index, size, hit, hit / size, hit / size / base, done / sum(hits)))
    return tuple(out)


MODEL = Ranking(
    "lam", "model", "the fine-tuned model's chance", 0.834, 0.809, 0.858,
    deciles((109, 61, 36, 22, 14, 10, 6, 4, 3, 1)), lift_range=(3.5, 4.7),
)  # fmt: skip
RULE = Ranking(
    "previous redemptions", "rule", "coupons redeemed before the campaign, then recency", 0.751, 0.718, 0.783,
    deciles((85, 52, 35.5, 24.5, 18, 15, 12, 10, 8, 6)), lift_range=(2.6, 3.9), lift_lead=(0.125, 1.75),
)  # fmt: skip
RANDOM = Ranking("random order", "random", "a shuffle", 0.5, None, None, deciles((26.6,) * 10))


def bins() -> tuple[CalibrationBin, ...]:
    """Ten groups, lowest chance first."""
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
    """Two phases with losses, one of them with AUC too, and a refit."""
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


@pytest.fixture
def context() -> ReportContext:
    """A full report."""
    return full_context()


def full_context() -> ReportContext:
    """A full report with the numbers of the Complete Journey."""
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
            Headline("Lift of the first tenth", "4.1\u00d7", "the redemptions of a tenth picked at random"),
            Headline("Redemptions expected", "163", "if the chances hold: 33% of the list; 16% is usual"),
        ),
        held_out=HeldOut(date(2017, 8, 8), date(2017, 11, 11), EXAMPLES, POSITIVES, (MODEL, RULE, RANDOM)),
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
            "The data set has no consent records: the ledger of this demo was drawn with a fixed seed.",
            "The retailer chose whom past campaigns reached: the held-out contacts are no random sample.",
        ),
    )  # fmt: skip


class Page(HTMLParser):
    """Checks the nesting of a document and keeps its text, attributes and ids."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        """The visible text, white space collapsed."""
        return re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)


def page_of(context: ReportContext) -> Page:
    page = Page(render(context))
    assert page.open == []
    return page


def assert_sound(context: ReportContext) -> Page:
    """Balanced, and without a trace of a missing or broken number."""
    page = page_of(context)
    coordinates = " ".join(
        v for _, n, v in page.attributes if n in {"x", "y", "width", "height", "points", "viewbox"}
    )
    for bad in ("nan", "inf", "None", "Undefined"):
        assert not re.search(rf"\b{bad}\b", coordinates)
        assert not re.search(rf"\b{bad}\b", page.text)
    assert "nan" not in page.text.lower().split()
    return page


def test_every_section_shows_its_numbers(context: ReportContext) -> None:
    text = assert_sound(context).text
    for part in (
        "Which households to send coupons to this November", "as of 11 November 2017",
        "the chance that a household redeems a coupon of the campaign within its running time",
        "4.1\u00d7", "of 1,900 that may be contacted",
        "All 500 places are taken", "/data/lam/deliveries/2017-11-11/contacts.csv",
        "231", "38.2%", "32.5%", "2,469 households",
        "Measured on 1,653 contacts from 8 August 2017 to 11 November 2017", "266 of them redeemed (16.1%)",
        "0.834 (0.809 to 0.858)", "0.751 (0.718 to 0.783)", "Brier score 0.098",
        "1,473,000 rows", "1,469,307", "1,465,008", "2,012", "81.5%",
        "4.2 million", "8 min 33 s", "3.1 GiB", "14 min 58 s in all",
        "9f2c" * 16, "version 12", "0.28.1", "drawn with a fixed seed",
        "20260314T093000Z-5c1e", "14 March 2026, 09:30 UTC",
    ):  # fmt: skip
        assert part in text, part


def test_charts_are_labelled_and_ids_are_unique(context: ReportContext) -> None:
    page = page_of(context)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-labelledby")]
    assert len(named) == 10 + 4  # four panels of training curves
    assert all(set(value.split()) <= set(ids) for value in named)


def test_losses_add_up(context: ReportContext) -> None:
    text = page_of(context).text
    m = words.MINUS
    assert f"\u2713 adds up: 1,473,000 {m} 3,126 {m} 214 {m} 1,133 = 1,468,527" in text
    assert f"\u2713 adds up: 1,900 {m} 1,400 = 500" in text
    assert "does not add up" not in text
    assert "\u2713 reconciliation" in text
    assert "off by" not in text


def test_an_unexplained_loss_is_shown(context: ReportContext) -> None:
    steps = list(context.funnel)
    steps[4] = replace(steps[4], losses=(Loss("fewer than 20 events", 150),))
    text = page_of(replace(context, funnel=tuple(steps))).text
    assert f"\u2717 does not add up: 2,469 {words.MINUS} 150 = 2,319, not 2,318: 1 unexplained" in text
    steps[4] = replace(steps[4], losses=())  # the same unit and smaller, without a reason
    text = page_of(replace(context, funnel=tuple(steps))).text
    assert "does not add up: 2,469 = 2,469, not 2,318: 151 unexplained" in text


def test_a_source_that_does_not_balance_is_shown(context: ReportContext) -> None:
    broken = replace(context.sources[1], quarantined=100)
    page = page_of(replace(context, sources=(context.sources[0], broken, context.sources[2])))
    assert page.text.count("\u2717 off by 13") == 2  # its row and the total
    assert ("span", "class", "bad") in page.attributes


def test_offers_that_do_not_cover_the_list_are_shown(context: ReportContext) -> None:
    contacts = replace(context.contact_list, by_proposal=context.contact_list.by_proposal[:3])
    text = page_of(replace(context, contact_list=contacts)).text
    assert "the offers add up to 473, the list has 500" in text
    assert "If the scores hold" not in text


def test_nothing_is_loaded_from_elsewhere(context: ReportContext) -> None:
    html = render(context)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "use"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in {"src", "href", "xlink:href", "srcset", "action"}]
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert not re.search(r"https?://|url\(|@import", html.replace("http://www.w3.org/2000/svg", ""))


def test_text_is_escaped(context: ReportContext) -> None:
    evil = '<script>alert("x")</script>'
    contacts = replace(
        context.contact_list,
        head=(Contact(1, evil, evil, evil, 0.5),),
        by_proposal=(ProposalCount(evil, evil, 500, 0.3),),
    )
    held_out = context.held_out
    assert held_out is not None
    rankings = (MODEL, replace(RULE, name=evil))
    html = render(
        replace(
            context,
            title=evil,
            contact_list=contacts,
            held_out=replace(held_out, rankings=rankings),
            funnel=(FunnelStep(evil, 5, "rows"),),
            stages=(StageCost(evil, 1.0),),
        )
    )
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    page = Page(html)
    assert page.open == []
    assert ("code", "title", evil) in page.attributes
    assert evil[:12] in page.text


def test_only_twelve_characters_of_a_key_are_printed(context: ReportContext) -> None:
    key = context.contact_list.head[0].customer_key
    page = page_of(context)
    assert key[:12] in page.text
    assert key[:13] not in page.text
    assert ("code", "title", key) in page.attributes


def test_an_empty_context_renders() -> None:
    bare = ReportContext(
        title="Nothing yet",
        data_set="none",
        as_of=date(2017, 1, 1),
        generated_at=datetime(2017, 1, 2, tzinfo=UTC),
        run_id="r",
        target="buys",
        contact_list=ContactList("/x.csv", 0, 100),
    )
    page = assert_sound(bare)
    assert "No customer is on the list; 100 places are free." in page.text
    assert "No period was held out" in page.text
    assert "No steps were recorded" in page.text
    assert "No consent was recorded" in page.text
    assert "/x.csv" not in page.text
    assert "svg" not in page.tags
    assert "Section 3 shows where they were lost" not in page.text
    lost = replace(bare, funnel=(FunnelStep("eligible", 9, "customers"), FunnelStep("left", 0, "customers")))
    assert "Section 3 shows where they were lost" in assert_sound(lost).text


def test_no_held_out_positives(context: ReportContext) -> None:
    nan = float("nan")
    lost = tuple(Decile(i, 165.3, 0.0, 0.0, nan, nan) for i in range(1, 11))
    rankings = tuple(
        replace(r, auc=nan, auc_low=None, auc_high=None, deciles=lost) for r in (MODEL, RULE, RANDOM)
    )
    held_out = HeldOut(date(2017, 8, 8), date(2017, 11, 11), EXAMPLES, 0, rankings)
    page = assert_sound(replace(context, held_out=held_out, calibration=Calibration((), None, None, None)))
    assert "Of the 1,653 contacts in the held-out period not one redeemed" in page.text
    assert "Lift cannot be measured" in page.text
    assert "Whether the chances came true was not measured" in page.text
    assert "n/a" in page.text


def test_no_held_out_examples(context: ReportContext) -> None:
    held_out = HeldOut(date(2017, 8, 8), date(2017, 11, 11), 0, 0, (replace(MODEL, auc=None, deciles=()),))
    assert "has no contacts: nothing to measure on" in assert_sound(replace(context, held_out=held_out)).text


def test_single_bins_and_points_render(context: ReportContext) -> None:
    contacts = replace(context.contact_list, score_histogram=(HistogramBin(0.2, 0.3, 500),))
    one = replace(
        context,
        contact_list=contacts,
        calibration=Calibration((CalibrationBin(0.2, 0.2, 0.2, 0.2, 5),), 0.1, 0.1, 0.0),
        training=Training(
            (CurvePoint("refit", 0.0, "loss", 0.5), CurvePoint("refit", 1.0, "loss", float("nan")))
        ),
        stages=(StageCost("only", 0.0),),
        funnel=(FunnelStep("rows", 0, "rows"), FunnelStep("events", 0, "events", (Loss("none", 0),))),
    )
    text = assert_sound(one).text
    assert "There is a single group, and its chance lies inside" in text
    assert "no lower than that of giving everyone the same chance" in text


def with_rankings(context: ReportContext, *rankings: Ranking) -> HeldOut:
    assert context.held_out is not None
    return replace(context.held_out, rankings=rankings)


def test_a_clear_lead(context: ReportContext) -> None:
    page = page_of(context)
    assert "The model beats the simple rule" in page.text
    assert "in 83.4% of such pairs" in page.text
    assert (
        "The tenth of contacts that the model ranked first redeemed 4.1 times as often as a tenth picked at "
        "random; ordering by previous redemptions gives 3.2. The 95% ranges are 3.5 to 4.7 and 2.6 to 3.9; that of the "
        "difference, +0.12 to +1.75, leaves out zero: it is not chance alone."
    ) in page.text
    assert "Why the number can be trusted" in page.text
    assert (
        "hold 77.4% of all contacts that redeemed; ordering by previous redemptions holds 64.8%" in page.text
    )


def test_it_says_that_the_model_lost(context: ReportContext) -> None:
    swapped = with_rankings(
        context,
        replace(RULE, name="lam", kind="model"),
        replace(MODEL, name="previous redemptions", kind="rule", lift_lead=(-1.75, 0.25)),
    )
    page = page_of(replace(context, held_out=swapped))
    assert "The model lost to the simple rule" in page.text
    assert "the rule is the better choice" in page.text
    assert (
        "Here the model lost to the rule. The 95% ranges are 2.6 to 3.9 and 3.5 to 4.7; that of the difference, "
        f"{words.MINUS}1.75 to +0.25, holds zero: in this tenth alone it may be chance."
    ) in page.text
    assert "here the rule reaches more than the model" in page.text
    assert "Can the number be trusted?" in page.text
    assert "beats" not in page.text
    assert ("div", "class", "verdict worse") in page.attributes


@pytest.mark.parametrize(
    ("model", "rule", "kind", "part"),
    [
        ((0.80, 0.77, 0.83), (0.78, 0.75, 0.81), "unclear", "ahead of the simple rule, perhaps by chance"),
        ((0.76, 0.73, 0.79), (0.78, 0.75, 0.81), "unclear", "behind the simple rule, perhaps by chance"),
        ((0.78, 0.75, 0.81), (0.78, 0.75, 0.81), "unclear", "are level"),
        ((0.80, None, None), (0.60, None, None), "unclear", "chance cannot be ruled out"),
        ((0.52, 0.48, 0.56), (0.75, 0.72, 0.78), "worse", "does not beat a coin"),
        ((0.45, None, None), None, "worse", "not better than chance"),
        ((0.80, 0.77, 0.83), None, "unclear", "no simple rule to compare with"),
        ((0.90, 0.87, 0.93), (0.78, 0.75, 0.81), "better", "do not overlap"),
    ],
)
def test_verdict(
    context: ReportContext,
    model: tuple[float, float | None, float | None],
    rule: tuple[float, float | None, float | None] | None,
    kind: str,
    part: str,
) -> None:
    rankings = [replace(MODEL, auc=model[0], auc_low=model[1], auc_high=model[2])]
    if rule is not None:
        rankings.append(replace(RULE, auc=rule[0], auc_low=rule[1], auc_high=rule[2]))
    verdict = words.verdict(with_rankings(context, *rankings), context.nouns)
    assert verdict.kind == kind
    assert part in verdict.title + verdict.sentence


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(0.01, 0.05, "better"), (-0.01, 0.05, "unclear"), (-0.05, -0.01, "worse")]
)
def test_a_paired_interval_decides(context: ReportContext, low: float, high: float, kind: str) -> None:
    rule = replace(RULE, auc=0.82, auc_low=0.80, auc_high=0.84, lead_low=low, lead_high=high)
    verdict = words.verdict(with_rankings(context, MODEL, rule), context.nouns)
    assert verdict.kind == kind
    assert f"{words.signed(low)} to {words.signed(high)}" in verdict.sentence


def test_the_strongest_rule_is_the_one_to_beat(context: ReportContext) -> None:
    weak = replace(RULE, name="recency", auc=0.6)
    assert with_rankings(context, MODEL, weak, RULE).rule == RULE


def test_a_top_tenth_below_average_is_called_worse_than_random(context: ReportContext) -> None:
    upside_down = replace(
        MODEL, deciles=deciles((1, 3, 4, 6, 10, 14, 22, 36, 61, 109)), lift_range=(0.01, 0.21)
    )
    rule = replace(RULE, lift_lead=(-3.7, -2.5))
    text = words.lift_sentence(with_rankings(context, upside_down, rule), context.nouns)
    assert "0.04 times as often" in text
    assert "worse than picking at random" in text
    assert (
        "Here the model lost to the rule. The 95% ranges are 0.01 to 0.21 and 2.6 to 3.9; that of the difference, "
        f"{words.MINUS}3.70 to {words.MINUS}2.50, leaves out zero: it is not chance alone."
    ) in text


@pytest.mark.parametrize(
    ("lift", "lead"), [(None, (0.1, 0.2)), ((3.0, 4.0), None), ((3.0, float("nan")), (0.1, 0.2))]
)
def test_without_all_ranges_of_the_lifts_none_is_said(
    context: ReportContext, lift: tuple[float, float] | None, lead: tuple[float, float] | None
) -> None:
    held_out = with_rankings(context, MODEL, replace(RULE, lift_range=lift, lift_lead=lead))
    assert words.lift_sentence(held_out, context.nouns).endswith("gives 3.2. No range could be computed.")


def test_the_lift_of_a_model_without_a_rule_has_its_range(context: ReportContext) -> None:
    assert words.lift_sentence(with_rankings(context, MODEL), context.nouns).endswith(
        "4.1 times as often as a tenth picked at random (95% range 3.5 to 4.7)."
    )


def test_poor_calibration_is_said(context: ReportContext) -> None:
    off = tuple(replace(b, mean_predicted=min(b.mean_predicted * 3 + 0.05, 0.99)) for b in bins())
    text = words.calibration_sentence(Calibration(off, 0.2, 0.135, 0.2), context.nouns)
    assert "In 0 of 10 groups" in text
    assert "read the chances as an order, not as chances" in text
    assert "no lower than" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.834, "83.4%"), (0.0042, "0.42%"), (0.00001, "<0.01%"),
     (0.99999, ">99.9%"), (None, "n/a"), (float("nan"), "n/a"), (float("inf"), "n/a")],
)  # fmt: skip
def test_percent(value: float | None, text: str) -> None:
    assert words.percent(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (512.9, "8 min 33 s"),
     (3599.9, "1 h 00 min"), (3780, "1 h 03 min")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.03, 0.71), (0, 4.2), (2.1, 8.4), (0, 1e6), (0.2, 0.2)])
def test_ticks_lie_inside_and_are_even(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert low - 1e-9 <= marks[0] <= marks[-1] <= high + 1e-9
    gaps = [b - a for a, b in pairwise(marks)]
    assert not gaps or max(gaps) - min(gaps) < 1e-9 * max(abs(high), 1)
    assert len(marks) <= 7


def test_a_lift_bar_is_as_tall_as_its_lift(context: ReportContext) -> None:
    page = Page(charts.lift_bars(context.held_out, 760))
    svg = charts.lift_bars(context.held_out, 760)
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" class="model"><title>the model, tenth', svg)]
    assert page.open == []
    assert len(heights) == 10
    assert heights[0] / heights[1] == pytest.approx(109 / 61, rel=0.01)


def test_a_time_without_zone_is_refused(context: ReportContext) -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(context, generated_at=datetime(2026, 3, 14))


def test_write_replaces_the_file(context: ReportContext, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report(context, path) == path
    first = path.read_text(encoding="utf-8")
    assert first == render(context)
    write_report(replace(context, title="Another title"), path)
    assert "Another title" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_failed_render_leaves_the_old_file(context: ReportContext, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    broken = replace(context, sources=("not a source",))  # type: ignore[arg-type]
    with pytest.raises(UndefinedError):
        write_report(broken, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_file(context: ReportContext, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_report(replace(context, title="\ud800"), path)  # a lone surrogate has no UTF-8
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
