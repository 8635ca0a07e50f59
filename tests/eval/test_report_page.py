"""The report in a real browser: what a reader clicks, types and sees. Skipped where no Chromium is installed."""

import itertools

import pytest

from eval.report import command as report
from tests.support.chromium import Chromium, find_chromium
from tests.support.report_files import HOSTILE, study_directory

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium")
OPEN_SECTIONS = "document.querySelectorAll('details.section').forEach((item) => { item.open = true; })"
OPEN_ALL = "document.querySelectorAll('details').forEach((item) => { item.open = true; })"
TABLE = "[...document.querySelectorAll('#tables table.data')][0]"
COLUMN = (
    f"(k) => [...{TABLE}.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[k].innerText)"
)
# Contrast by WCAG 2.1: relative luminance of a text's colour and of the first opaque background behind it.
CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = {};
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script")) continue;
    const pair = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) found[`${element.tagName}.${element.className}`] = ratio;
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = study_directory(tmp_path_factory.mktemp("page") / "study")
    assert report.main([str(path)]) == 0
    return path / "report.html"


@pytest.fixture(scope="module")
def chromium():
    try:
        browser = Chromium()
    except OSError as error:  # such as a package that only tells where to get the browser
        pytest.skip(f"Chromium does not start: {error}")
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, page):
    """The browser with the page and its sections open; afterwards nothing may have complained or been asked for."""
    chromium.open(page)
    chromium.run(OPEN_SECTIONS)
    yield chromium
    assert chromium.complaints() == []
    assert chromium.requests() == [page.resolve().as_uri()]
    assert not [e for e in chromium.events if e.get("method") == "Page.javascriptDialogOpening"]


def column(browser, k):
    return browser.run(f"({COLUMN})({k})")


def heading(k):
    return f"#tables th:nth-child({k + 1}) button"


def test_the_page_opens_with_one_picture_three_sentences_and_the_verdicts(chromium, page):
    chromium.open(page)
    shown = "[...document.querySelectorAll('{}')].filter((item) => item.checkVisibility()).length"
    assert chromium.run(shown.format("main figure")) == 1
    assert chromium.run(shown.format(".reading li")) == 3
    assert chromium.run(shown.format("table")) == 1
    rows = chromium.run("[...document.querySelectorAll('.gaps li')].map((item) => item.innerText)")
    assert len(rows) == 8
    assert [word in rows[0] for word in ("SL", "L2 1.5", "60.0 % reported", "27.5 % left")] == [True] * 4
    bar = "document.querySelector('.gap .lost').getBoundingClientRect()"
    whole = "document.querySelector('.gap .track').getBoundingClientRect()"
    assert chromium.run(f"{bar}.width / {whole}.width") == pytest.approx(0.6 - 0.275, abs=1e-3)
    assert chromium.run("document.querySelectorAll('details.section[open]').length") == 0
    chromium.click("nav a[href='#tables']")
    chromium.run("new Promise((done) => setTimeout(done, 50))")
    assert chromium.run("[...document.querySelectorAll('details.section[open]')].map((item) => item.id)") == [
        "tables"
    ]


def test_wide_tables_say_that_they_scroll_and_narrow_ones_do_not(chromium, page):
    hints = "[...document.querySelectorAll('#summary .sideways')].map((item) => item.checkVisibility())"
    faded = "document.querySelector('#summary .scroll').classList.contains('more')"
    for width, needed in ((390, True), (1280, False)):
        chromium.open(page, width=width, height=844)
        chromium.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
        assert (chromium.run(hints), chromium.run(faded)) == ([needed], needed)
    chromium.open(page, width=390, height=844)
    chromium.run("document.querySelector('#summary .scroll').scrollLeft = 10000")
    chromium.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
    assert chromium.run(faded) is False


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(browser):
    assert column(browser, 2) == ["10", "100", "1,000", "10,000"]
    browser.click(heading(2))
    browser.click(heading(2))
    assert column(browser, 2) == ["10,000", "1,000", "100", "10"]
    states = f"[...{TABLE}.tHead.rows[0].cells].map((head) => head.getAttribute('aria-sort'))"
    assert browser.run(states) == ["none", "none", "descending", "none", "none"]
    browser.click(heading(1))
    assert [text.split()[0] for text in column(browser, 1)] == ["30.0", "50.0", "70.0", "90.0"]
    assert browser.run(states) == ["none", "ascending", "none", "none", "none"]


def test_empty_cells_stay_last_in_both_orders(browser):
    browser.click(heading(3))
    assert column(browser, 3) == ["-0.15", "-0.1", "0", "–"]
    browser.click(heading(3))
    assert column(browser, 3) == ["0", "-0.1", "-0.15", "–"]


def test_the_keyboard_sorts(browser):
    browser.run(f"document.querySelector('{heading(0)}').focus()")
    browser.press("Enter", 13, "\r")
    assert column(browser, 0) == ["RL", "RL-adv", "SL", "SL-adv"]
    browser.press(" ", 32, " ")
    assert column(browser, 0) == ["SL-adv", "SL", "RL-adv", "RL"]


def test_a_filter_leaves_rows_that_hold_every_word(browser):
    browser.run("document.querySelector('#tables .filter input').focus()")
    browser.send("Input.insertText", text="ADV sound")
    assert column(browser, 0) == ["SL-adv"]
    count = "document.querySelector('#tables .count').textContent"
    assert browser.run(count) == "1 of 4 rows"
    browser.run("document.querySelector('#tables .filter input').select()")
    browser.press("Delete", 46)
    assert len(column(browser, 0)) == 4
    assert browser.run(count) == "4 rows"


def test_plots_enlarge_and_the_focus_returns(browser):
    browser.run("document.querySelector('#plots .zoom').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run("document.getElementById('viewer').open")
    assert browser.run("document.querySelector('#viewer img').alt") == "a heat map"
    assert browser.run("document.querySelector('#viewer img').naturalWidth") == 120
    assert browser.run("document.activeElement.closest('dialog') !== null")
    browser.press("Escape", 27)
    assert not browser.run("document.getElementById('viewer').open")
    assert browser.run("document.activeElement === document.querySelector('#plots .zoom')")
    browser.click("#plots .zoom")
    browser.click("#viewer .close")
    assert not browser.run("document.getElementById('viewer').open")


def test_a_slider_goes_from_the_clean_to_the_attacked_image(browser):
    opacity = "getComputedStyle(document.querySelector('.example .attacked')).opacity"
    slider = "document.querySelector('.example .blend')"
    assert browser.run(opacity) == "1"
    browser.run(f"{slider}.focus()")
    browser.press("Home", 36)
    assert browser.run(opacity) == "0"
    browser.press("ArrowRight", 39)
    assert browser.run(opacity) == "0.01"
    assert browser.run(f"{slider}.getAttribute('aria-valuetext')") == "1 % of the perturbation"
    assert browser.run(f"{slider}.labels[0].textContent") == "Image 1, class zero: clean to attacked"
    browser.run("document.querySelector('.together .all').focus()")
    browser.press("Home", 36)
    values = "[...document.querySelector('.gallery').querySelectorAll('.blend')].map((item) => item.value)"
    assert browser.run(values) == ["0"] * 6
    scale = "getComputedStyle(document.querySelector('.example .clean')).imageRendering"
    assert browser.run(scale) == "pixelated"


def test_the_evidence_unfolds_and_can_be_filtered(browser):
    shown = "[...document.querySelectorAll('.audit')].filter((item) => item.checkVisibility()).length"
    assert browser.run(shown) == 0  # folded by regime
    browser.run("document.querySelectorAll('.regime').forEach((item) => { item.open = true; })")
    assert browser.run(shown) == 14
    browser.run("document.getElementById('evidence-filter').focus()")
    browser.send("Input.insertText", text="rl masked l2")
    assert browser.run(shown) == 2
    assert "2 of 14 audits" in browser.run("document.querySelector('.tools').innerText")
    body = "[...document.querySelectorAll('.audit:not([hidden]) .alarm')].filter((e) => e.checkVisibility()).length"
    assert browser.run(body) == 0
    browser.click(".unfold")
    assert browser.run(body) == 2


def test_text_from_files_stays_text(browser):
    assert browser.run("document.querySelector('h1').textContent") == f"study {HOSTILE}"
    assert (
        browser.run(
            "document.querySelectorAll('img:not([src^=\"data:image/png;base64,\"]):not(#viewer img)').length"
        )
        == 0
    )


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_enough_in_both_themes(chromium, page, dark):
    chromium.open(page, dark=dark)
    chromium.run(OPEN_ALL)
    assert chromium.run(CONTRAST) == {}
    background = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(19, 22, 25)") == dark


def test_the_theme_can_be_chosen_and_is_remembered(browser, page):
    background = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(background)
    browser.click(".theme")
    assert browser.run("document.querySelector('.theme').textContent") == "Theme: light"
    browser.click(".theme")
    assert browser.run(background) != light
    browser.open(page)
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    browser.run("localStorage.clear()")


@pytest.mark.parametrize("width", [320, 375, 768, 1600])
def test_nothing_scrolls_sideways(chromium, page, width):
    chromium.open(page, width=width, height=800)
    chromium.run(OPEN_ALL)
    assert chromium.run("document.documentElement.scrollWidth") == width


def test_what_assistive_technology_sees(browser):
    browser.run(OPEN_ALL)
    assert browser.run("document.documentElement.lang") == "en"
    nodes = [node for node in browser.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = [node["role"]["value"] for node in nodes]
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert roles.count(role) == 1
    for role in ("button", "link", "slider", "searchbox", "image", "table", "region"):
        named = [node.get("name", {}).get("value") for node in nodes if node["role"]["value"] == role]
        assert named, role
        assert all(named), role
    levels = browser.run(
        "[...document.querySelectorAll('main :is(h2, h3), h1')].map((e) => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.run(
        "new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size"
    ) == browser.run("document.querySelectorAll('[id]').length")


def test_the_policy_lets_nothing_in(chromium, page):
    chromium.open(page)
    assert "default-src 'none'" in chromium.run("document.querySelector('meta[http-equiv]').content")
    chromium.run(
        "(() => { window.blocked = [];"
        "document.addEventListener('securitypolicyviolation', (e) => blocked.push(e.effectiveDirective));"
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);"
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script);"
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\" onclick=\"window.ran = 1\">x</p>');"
        "return fetch('http://127.0.0.1:9/').catch(() => new Promise((done) => setTimeout(done, 50))); })()"
    )
    assert set(chromium.run("blocked")) >= {"img-src", "script-src-elem", "connect-src"}
    assert chromium.run("window.ran === undefined")


def test_without_javascript_everything_can_still_be_read(chromium, page):
    chromium.open(page, javascript=False)
    chromium.screenshot(page.parent / "plain.png")
    chromium.send("Emulation.setScriptExecutionDisabled", value=False)
    places = chromium.run(
        "[...document.querySelector('.pair').children].map((item) => item.getBoundingClientRect().x)"
    )
    assert places[1] > places[0] + 50
    assert chromium.run("document.querySelector('.theme').checkVisibility()") is False
    assert chromium.run("document.querySelectorAll('input').length") > 0
    assert (
        chromium.run("[...document.querySelectorAll('input')].some((item) => item.checkVisibility())")
        is False
    )
