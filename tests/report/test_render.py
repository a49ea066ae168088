"""The rendered page: every number is shown, nothing is broken, and files are replaced atomically."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from lam_spark.report import text as words
from lam_spark.report.content import (
    Arrival,
    Calibration,
    CalibrationBin,
    Contact,
    ContactList,
    Decile,
    FunnelStep,
    HeldOut,
    HistogramBin,
    Lookup,
    Loss,
    ProposalCount,
    QueryCount,
    ReportContext,
    StageCost,
    StaleChannel,
    TargetResult,
    Training,
)
from lam_spark.report.render import render, write_report
from lam_spark.training.summary import CurvePoint
from tests.report.page import Page, assert_sound, page_of
from tests.report.sample import BASELINE, EXAMPLES, MODEL, RANDOM, with_rankings


def test_every_section_shows_its_numbers(context: ReportContext) -> None:
    text = assert_sound(context).text
    for part in (
        "Which households to send coupons to this November", "as of 11 November 2017",
        "the probability that a household redeems a coupon of the campaign within its running time",
        "4.1\u00d7", "of 1,900 that may be contacted",
        "All 500 places are taken", "/data/lam/deliveries/2017-11-11/contacts.csv",
        "231", "38.2%", "32.5%", "2,469 households",
        "Measured on 1,653 contacts from 8 August 2017 to 11 November 2017", "266 of them redeemed (16.1%)",
        "0.834 (0.809 to 0.858)", "0.751 (0.718 to 0.783)", "Brier score 0.098",
        "1,473,000 rows", "1,469,307", "1,465,008", "2,012", "81.5%",
        "4.2 million", "8 min 33 s", "3.1 GiB", "14 min 58 s wall-clock time in total",
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


def test_the_losses_of_each_step_add_up(context: ReportContext) -> None:
    text = page_of(context).text
    m = words.MINUS
    assert f"\u2713 adds up: 1,473,000 {m} 3,126 {m} 214 {m} 1,133 = 1,468,527" in text
    assert f"\u2713 adds up: 1,900 {m} 1,400 = 500" in text
    assert "does not add up" not in text
    assert text.count("\u2713 adds up ") == 4  # three sources and their total
    assert "off by" not in text


def test_arrival_delays_and_what_later_links_changed_are_shown(context: ReportContext) -> None:
    assert "Later links" not in page_of(context).text
    moved = replace(context.sources[0], reassigned=3, unassigned=1, known_at_changed=1_200)
    sources = (moved, replace(context.sources[1], reassigned=2), context.sources[2])
    arrivals = (Arrival("coupon redemptions", "6h", "31h", 14),)
    text = assert_sound(replace(context, sources=sources, arrivals=arrivals)).text
    assert (
        "Later links gave 5 events to another household and left 1 without one: all histories lack them, past ones "
        "too, while the nights before had them. Later links changed when 1,200 events were known. To this extent, "
        "scores of past nights differ from a new computation."
    ) in text
    assert "95% arrived within" in text
    assert "coupon redemptions 6h 31h 14" in " ".join(text.split())


def test_silent_channels_are_shown_with_the_targets_that_wait(context: ReportContext) -> None:
    assert "Silent channels" not in page_of(context).text
    stale = (
        StaleChannel("shop", "no event since 2024-11-17", ("buys_again", "lapse")),
        StaleChannel("<kiosk>", "no event in the 365 days before as_of", ()),
    )
    text = " ".join(assert_sound(replace(context, stale_channels=stale)).text.split())
    assert "no event since 2024-11-17. Labels that need it wait: buys_again, lapse." in text
    assert "<kiosk>" in text


def test_versions_of_look_ups_and_what_mapped_the_first_load_are_shown(context: ReportContext) -> None:
    first, since = datetime(2023, 1, 2, 3, tzinfo=UTC), datetime(2023, 5, 6, 7, tzinfo=UTC)
    text = assert_sound(replace(context, lookups=(Lookup("shops", 3, since, first),))).text
    assert "the history of the first load was mapped with version 1" in text.lower()
    row = f"shops 3 {words.timestamp(since)} {words.timestamp(first)}"
    assert row in " ".join(text.split())


def test_an_unexplained_loss_is_shown(context: ReportContext) -> None:
    steps = list(context.funnel)
    steps[4] = replace(steps[4], losses=(Loss("fewer than 20 events", 150),))
    text = page_of(replace(context, funnel=tuple(steps))).text
    assert f"\u2717 does not add up: 2,469 {words.MINUS} 150 = 2,319, not 2,318: 1 unexplained" in text
    steps[4] = replace(steps[4], losses=())  # the same unit and smaller, without a reason
    text = page_of(replace(context, funnel=tuple(steps))).text
    assert "does not add up: 2,469 = 2,469, not 2,318: 151 unexplained" in text


def test_a_source_whose_counts_do_not_add_up_is_shown(context: ReportContext) -> None:
    broken = replace(context.sources[1], quarantined=100)
    page = page_of(replace(context, sources=(context.sources[0], broken, context.sources[2])))
    assert page.text.count("\u2717 off by 13") == 2  # its row and the total
    assert ("span", "class", "bad") in page.attributes


def test_offers_that_do_not_cover_the_list_are_shown(context: ReportContext) -> None:
    contacts = replace(context.contact_list, by_proposal=context.contact_list.by_proposal[:3])
    text = page_of(replace(context, contact_list=contacts)).text
    assert "the offers add up to 473, the list has 500" in text
    assert "If the predicted probabilities" not in text


def test_the_page_loads_no_external_resource(context: ReportContext) -> None:
    html = render(context)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "use"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in {"src", "href", "xlink:href", "srcset", "action"}]
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert not re.search(r"https?://|url\(|@import", html.replace("http://www.w3.org/2000/svg", ""))


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
# Values of a fixed set, which choose what is drawn.
_FIXED = {"kind", "unit", "metric", "proposal_id"}


def with_evil_texts(value: Any) -> Any:
    """The same dataclasses with `EVIL` in place of every free text."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{n: v if n in _FIXED else with_evil_texts(v) for n, v in inner.items()})
    if isinstance(value, tuple):
        return tuple(with_evil_texts(item) for item in value)
    return EVIL if isinstance(value, str) else value


def test_every_text_of_the_report_is_escaped(context: ReportContext) -> None:
    html = render(with_evil_texts(context))
    assert "<script" not in html
    assert "<img" not in html
    page = Page(html)
    assert page.open == []
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert html.count("&lt;script&gt;") > 50


def test_text_is_escaped(context: ReportContext) -> None:
    evil = '<script>alert("x")</script>'
    contacts = replace(
        context.contact_list,
        head=(Contact(1, evil, evil, evil, 0.5),),
        by_proposal=(ProposalCount(evil, evil, 500, 0.3),),
    )
    held_out = context.held_out
    assert held_out is not None
    rankings = (MODEL, replace(BASELINE, name=evil))
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
    assert "Section 3 shows why they were removed" not in page.text
    with_loss = replace(
        bare, funnel=(FunnelStep("eligible", 9, "customers"), FunnelStep("left", 0, "customers"))
    )
    assert "Section 3 shows why they were removed" in assert_sound(with_loss).text


def test_a_period_without_positives_renders(context: ReportContext) -> None:
    nan = float("nan")
    no_positives = tuple(Decile(i, 165.3, 0.0, 0.0, nan, nan) for i in range(1, 11))
    rankings = tuple(
        replace(r, auc=nan, auc_low=None, auc_high=None, deciles=no_positives)
        for r in (MODEL, BASELINE, RANDOM)
    )
    held_out = HeldOut(date(2017, 8, 8), date(2017, 11, 11), EXAMPLES, 0, rankings)
    page = assert_sound(replace(context, held_out=held_out, calibration=Calibration((), None, None, None)))
    assert (
        "Not one of the 1,653 contacts in the held-out period redeemed, so rankings cannot be compared."
        in page.text
    )
    assert "Lift cannot be measured" in page.text
    assert "The calibration of the probabilities was not measured" in page.text
    assert "n/a" in page.text


def test_a_period_without_examples_renders(context: ReportContext) -> None:
    held_out = HeldOut(date(2017, 8, 8), date(2017, 11, 11), 0, 0, (replace(MODEL, auc=None, deciles=()),))
    assert (
        "has no contacts, so nothing can be measured"
        in assert_sound(replace(context, held_out=held_out)).text
    )


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
    assert "There is only one group; its predicted probability is inside" in text
    assert "not lower than with the same probability for everyone" in text


def test_a_better_model_is_reported_as_better(context: ReportContext) -> None:
    page = page_of(context)
    assert "The model is better than the baseline" in page.text
    assert "in 83.4% of cases" in page.text
    assert (
        "Contacts in the model's top decile (the 10% ranked first) redeemed 4.1 times as often as the average contact; "
        "ordering by previous redemptions gives 3.2. The 95% confidence intervals are 3.5 to 4.7 and 2.6 to 3.9; that "
        "of the difference is +0.12 to +1.75, which excludes zero: the difference is not chance alone."
    ) in page.text
    assert "Why the scores can be trusted" in page.text
    assert (
        "contains 77.4% of all contacts that redeemed; ordering by previous redemptions contains 64.8%"
        in page.text
    )


def test_a_worse_model_is_reported_as_worse(context: ReportContext) -> None:
    swapped = with_rankings(
        context,
        replace(BASELINE, name="lam", kind="model"),
        replace(MODEL, name="previous redemptions", kind="baseline", lift_difference=(-1.75, 0.25)),
    )
    page = page_of(replace(context, held_out=swapped))
    assert "The model is worse than the baseline" in page.text
    assert "the baseline is the better choice" in page.text
    assert (
        "In the top decile, the baseline is better. The 95% confidence intervals are 2.6 to 3.9 and 3.5 to 4.7; that "
        f"of the difference is {words.MINUS}1.75 to +0.25, which includes zero: in the top decile, the difference may "
        "be chance."
    ) in page.text
    assert "here the baseline reaches more than the model" in page.text
    assert "Can the scores be trusted?" in page.text
    assert "is better than" not in page.text
    assert ("div", "class", "comparison worse") in page.attributes


def test_a_model_that_is_not_measured_says_why(context: ReportContext) -> None:
    why = "too few to judge: 12 (12 positive of 400 queries; quality.min_positives is 30)"
    page = assert_sound(replace(context, held_out=None, calibration=None, not_measured=why))
    assert f"Not measured T{why[1:]}." in page.text
    assert "Can the scores be trusted?" in page.text


def test_a_question_without_an_offer_names_none(context: ReportContext) -> None:
    """Whom will the company lose? There is nothing to propose, and the target is no success."""
    page = assert_sound(
        replace(context, has_offer=False, title="Whom to contact", target="buys nothing more")
    )
    assert "Whom to contact, and with which offer" in page_of(context).text
    contacts = page.text.partition("The top of the list")[0].partition("1 Whom to contact")[2]
    assert not re.search("offer|propos", contacts, re.IGNORECASE)
    assert "The predicted probabilities of the 500 households add up to 163." in page.text
    assert "Coupons on" not in page.text
    assert "will reach the target" not in page.text


def test_every_target_is_compared_with_its_baseline(context: ReportContext) -> None:
    targets = (
        TargetResult("upgrade", "upgrades", 1653, "AUC", 0.834, 0.751, "previous upgrades", False),
        TargetResult("lapse", "buys nothing", 900, "AUC", 0.51, 0.6, "recency", True),
        TargetResult("items", "buys these", 900, "macro AUC", 0.7, None, "no baseline", False),
        TargetResult("spend", "spends", 9, "", None, None, "last spend", False, "too few to judge: 9"),
    )
    text = assert_sound(replace(context, targets=targets)).text
    assert "upgrade upgrades 1,653 AUC 0.834 0.751 not behind the baseline (previous upgrades)" in text
    assert "lapse buys nothing 900 AUC 0.510 0.600 the model is behind the baseline (recency)" in text
    assert "items buys these 900 macro AUC 0.700 n/a no baseline" in text
    assert "spend spends 9 none n/a n/a too few to judge: 9" in text


def test_the_queries_of_every_target_add_up(context: ReportContext) -> None:
    used = (("train", 50), ("straddling", 10), ("validation", 20), ("test", 15))
    unused = (Loss("before the training period", 4), Loss("without a horizon", 1))
    queries = (QueryCount("upgrade", 100, used, unused), QueryCount("lapse", 96, used, ()))
    text = assert_sound(replace(context, queries=queries)).text
    assert "upgrade 100 50 10 20 15 4 before the training period; 1 without a horizon ✓ adds up" in text
    assert "lapse 96 50 10 20 15 0 ✗ off by 1" in text


def test_a_time_without_time_zone_is_rejected(context: ReportContext) -> None:
    message = (
        "expected generated_at with a time zone, got 2026-03-14T00:00:00: pass an aware datetime, "
        "e.g. datetime.now(UTC)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(context, generated_at=datetime(2026, 3, 14))


def test_writing_replaces_the_file(context: ReportContext, tmp_path: Path) -> None:
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
    broken = replace(context, headlines=("not a headline",))  # type: ignore[arg-type]
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
