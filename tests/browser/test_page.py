"""The report in a real browser, from a disk: it draws, asks nothing of a network, and runs no text of a model."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from megatron_rl.analysis.report.page import make_page, read_runs
from tests.analysis.made import completion, evaluated, make_run, numbers
from tests.conftest import PATIENCE

HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt=1'><b>bold</b>"
HIDDEN = "bell\x07 escape\x1b[31m turned\u202eround zero\u200bwidth"
PHONE = {"width": 390, "height": 844}
expect.set_options(timeout=1000 * PATIENCE)
SECTIONS = ("overview", "curves", "rewards", "behaviour", "samples", "machine", "provenance")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=1000 * PATIENCE)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two seeds, with hostile texts in every place that a text can come to."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"stage": "eval", "step": 0, "greedy/correct": 0.1}]
    rows += [numbers(step) | {f"reward/{HOSTILE}/score": step / 10} for step in range(1, 13)]
    texts = [evaluated("before", 0, i, right=i == 2) for i in range(4)]
    texts += [completion(step, i) for step in range(1, 11) for i in range(8)]
    texts += [
        completion(10, 9, response=f"{HOSTILE} needle", prompt=HOSTILE, id=HOSTILE, extra={HOSTILE: HOSTILE[:20]})
    ]
    texts += [completion(10, 10, response=HIDDEN)]
    texts += [evaluated("after RL", 10, i, right=i != 2) for i in range(4)]
    paths = [make_run(folder / f"seed{seed}", rows, texts, [f"run.seed={seed}"]) for seed in range(2)]
    file = folder / "report.html"
    file.write_text(make_page(read_runs([str(path) for path in paths])), encoding="utf-8")
    return file


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Page]:
    """The page; whatever goes wrong in it, or is asked of a network, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield from watched(context, report)
    context.close()


def watched(context: Any, report: Path) -> Iterator[Page]:
    context.set_default_timeout(1000 * PATIENCE)
    page, wrong = context.new_page(), []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else wrong.append(one.url))
    page.goto(report.as_uri())
    yield page
    assert wrong == []
    assert page.evaluate("window.hurt") is None
    assert page.locator("main img, main script, main b").count() == 0


def open_part(page: Page, name: str) -> Any:
    page.locator(f"#tab-{name}").click()
    part = page.locator(f"#{name}")
    expect(part).to_be_visible()
    return part


def test_every_part_opens_and_charts_are_drawn(opened: Page) -> None:
    for name in SECTIONS:
        part = open_part(opened, name)
        assert opened.locator("[role=tabpanel]:visible").count() == 1
        if (plots := part.locator(".plot")).count():
            plots.first.scroll_into_view_if_needed()
            plots.first.locator("svg.main-svg").first.wait_for()
    opened.locator("#tab-overview").click()
    plot = opened.locator("#overview figure", has=opened.locator("h3", has_text="accuracy")).locator(".plot")
    assert plot.first.locator("path").count() > 0
    assert opened.url.endswith("#overview")


def test_lines_are_smoothed_when_asked_for(opened: Page) -> None:
    part = open_part(opened, "overview")
    plot = part.locator("figure", has=opened.locator("h3", has_text="reward")).locator(".plot").first
    plot.locator("svg.main-svg").first.wait_for()
    assert plot.evaluate("plot => plot.data.length") == 3  # the two edges of a band, and the mean
    assert plot.evaluate("plot => plot.data[2].y[11]") == 1.2
    opened.locator("#smooth").click()
    assert plot.evaluate("plot => plot.data.length") == 4  # the mean itself too, faint
    weights = [0.85 ** (12 - step) for step in range(1, 13)]
    expected = sum(weight * step / 10 for step, weight in enumerate(weights, 1)) / sum(weights)
    assert plot.evaluate("plot => plot.data[3].y[11]") == pytest.approx(expected, abs=1e-9)
    opened.locator("#smooth").click()
    assert plot.evaluate("plot => plot.data[2].y[11]") == 1.2


def test_the_keyboard_is_enough(opened: Page) -> None:
    opened.locator("#tab-overview").focus()
    opened.keyboard.press("ArrowRight")
    expect(opened.locator("#curves")).to_be_visible()
    opened.keyboard.press("End")
    expect(opened.locator("#provenance")).to_be_visible()
    opened.keyboard.press("ArrowRight")  # round to the first
    expect(opened.locator("#overview")).to_be_visible()
    open_part(opened, "samples")
    first = opened.locator("#samples .sample summary").first
    first.focus()
    opened.keyboard.press("Enter")
    expect(opened.locator("#samples .sample .body").first).to_be_visible()


def test_search_filters_and_orders_samples(opened: Page) -> None:
    part = open_part(opened, "samples")
    count = part.locator("[role=status]")
    expect(count).to_have_text("180 completions, 40 shown")
    part.locator("button.more").click()
    expect(part.locator(".sample")).to_have_count(80)
    part.locator("select[name=run]").select_option("1")
    expect(count).to_have_text("90 completions, 40 shown")
    part.locator("input[type=search]").fill("NEEDLE window.hurt")
    expect(count).to_have_text("1 completions")
    part.locator("input[type=search]").fill("")
    part.locator("select[name=answer]").select_option("wrong")
    part.locator("select[name=order]").select_option("worst")
    expect(part.locator(".sample .verdict.wrong").first).to_be_visible()
    assert part.locator(".sample .verdict.right").count() == 0
    part.locator("select[name=answer]").select_option("")
    part.locator("select[name=order]").select_option("changed")
    expect(count).to_have_text("4 questions answered otherwise")
    part.locator(".sample summary").first.click()
    assert "worse" in part.locator(".sample").first.inner_text()
    expect(part.locator(".sample").first.locator(".pair .texts")).to_have_count(2)


def test_stages_are_coloured_and_parts_of_the_reward_are_said(opened: Page) -> None:
    part = open_part(opened, "samples")
    part.locator("input[type=search]").fill("needle")
    part.locator("input[type=search]").fill("story 3?")
    part.locator(".sample summary").first.click()
    body = part.locator(".sample .body").first
    for stage in range(1, 6):
        expect(body.locator(f".s{stage}")).to_have_count(1)
    assert body.locator(".s1").inner_text().startswith("Cue Encoding")
    assert body.locator("mark").first.inner_text() == "story"
    said = body.locator("dl").inner_text()
    assert "format/score" in said and "advantage" in said and "num_clues" in said


def test_hostile_and_hidden_characters_are_shown(opened: Page) -> None:
    part = open_part(opened, "samples")
    part.locator("input[type=search]").fill("needle")
    part.locator(".sample summary").first.click()
    text = part.locator(".sample .body .text").nth(1)
    expect(text).to_be_visible()
    assert text.inner_text() == f"{HOSTILE} needle"
    part.locator("input[type=search]").fill("escape")
    part.locator(".sample summary").first.click()
    controls = part.locator(".sample .body").first.locator(".text .control")
    expect(controls).to_have_text(["␇", "␛", "U+202E", "U+200B"])
    for name in SECTIONS:
        open_part(opened, name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_by_day_and_night(browser: Browser, report: Path, scheme: Any) -> None:
    context = browser.new_context(viewport=PHONE, color_scheme=scheme, has_touch=True)
    for page in watched(context, report):
        for name in SECTIONS:
            open_part(page, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        ground = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(ground)
        assert (before == "rgb(18, 19, 22)") == (scheme == "dark")
        page.locator("#theme").click()
        assert page.evaluate(ground) != before
        page.reload()
        assert page.evaluate(ground) != before  # it is remembered
    context.close()
