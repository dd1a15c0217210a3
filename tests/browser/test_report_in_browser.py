"""The HTML report in a real browser: Chromium without a screen and without a network."""

import shutil
from pathlib import Path

import pytest
from report_runs import SEEDS, SPEC, build, curve
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from sparsebench.sweep.differences import differences
from sparsebench.sweep.html.compare import compare_html
from sparsebench.sweep.html.data import Budget
from sparsebench.sweep.html.page import report_html
from sparsebench.sweep.sheet import sheet

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WIDE, NARROW = 1400, 390
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='300' height='100'><circle r='40'/></svg>"
ERROR = ("ValueError: </script><b>no</b>", "Traceback\n  </script><img src=x onerror=alert(1)>\n")

WRONG = {(1, 1, 2): ERROR, (2, 1, 0): None}


@pytest.fixture(scope="module")
def browser():
    if not BROWSER or not DRIVER:
        pytest.fail("there is no browser: apt-get install chromium chromium-driver")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (
        "--headless=new",
        "--no-sandbox",  # containers run tests as root
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever it asks for, there is no network
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The address of a report with a failed run and a missing one."""
    folder = tmp_path_factory.mktemp("a report, ünd # more?")
    results = build(folder / "runs", failed=WRONG)
    path = folder / "report.html"
    path.write_text(report_html(results, sheet(results, "sparsebench -m +table=mine"), SVG))
    return path.as_uri()


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def width(request):
    return request.param


@pytest.fixture
def opened(browser, made, width):
    """The report in a window of some width; the console must stay empty."""
    resize(browser, width)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(made)
    yield browser
    assert browser.get_log("browser") == []


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def one(browser, selector):
    (found,) = all_of(browser, selector)
    return found


def click(browser, element):
    scroll_to(browser, element)
    element.click()


def scroll_to(browser, element):
    there = "arguments[0].scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})"
    browser.execute_script(there, element)


def shown(browser, selector):
    """The only element of a selector, as soon as it is there; a new address takes effect later."""
    WebDriverWait(browser, 10).until(
        lambda _: any(e.is_displayed() for e in all_of(browser, selector))
    )
    return one(browser, selector)


def gone(browser, selector):
    WebDriverWait(browser, 10).until(
        lambda _: not any(e.is_displayed() for e in all_of(browser, selector))
    )
    return True


def points(path):
    """Places of the points of an SVG path."""
    pairs = path.get_attribute("d").removeprefix("M").split("L")
    return [tuple(map(float, pair.split())) for pair in pairs]


def mean(row, column, epoch):
    """Accuracy after an epoch, over the seeds that have one."""
    seeds = [seed for seed in SEEDS if (row, column, seed) not in WRONG]
    return sum(curve(row, column, seed, epoch) for seed in seeds) / len(seeds)


def test_a_cell_leads_to_its_run_and_back(opened):
    click(opened, one(opened, "a[href='#cell/2-0'].leads"))
    dialog = shown(opened, "dialog[open]")
    assert one(opened, "dialog h2").text == "rigl, Sparsity 0.8"
    assert "94.50 (published: A paper, arXiv 0000.00000, Table 1)" in dialog.text
    seeds = all_of(opened, "dialog tbody a")
    assert [link.text for link in seeds] == [f"seed {seed}" for seed in SEEDS]
    assert "93.00" in all_of(opened, "dialog tbody tr")[1].text  # 0.92 + 0.01 of seed 1
    click(opened, seeds[1])
    run = shown(opened, "#run")
    assert gone(opened, "dialog")
    assert gone(opened, "#report")
    assert one(opened, "#run h1").text.split("\n")[0].startswith("rigl, Sparsity 0.8, seed 1")
    assert "mlp-2-0-1" in run.text
    assert "a note of seed 1" in run.text
    assert "93.00" in run.text
    assert opened.execute_script("return window.scrollY") == 0
    opened.back()
    assert shown(opened, "dialog[open]")
    opened.back()
    assert shown(opened, "#report")
    assert gone(opened, "dialog, #run")


def test_config_log_and_curves_of_a_run(opened, made):
    opened.get(f"{made}#run/mlp-1-1-0")
    assert "method\nset" in one(opened, "#run").text
    whole = next(e for e in all_of(opened, "#run summary") if e.text.startswith("The whole config"))
    assert whole.text == "The whole config: 7 keys"
    click(opened, whole)
    assert "model.hidden\n[300, 100]" in one(opened, "#run").text
    titles = [caption.text for caption in all_of(opened, "#run figcaption")]
    assert titles == ["Validation accuracy", "Training loss", "Sparsity", "Learning rate",
                      "Density by layer"]  # fmt: skip
    drawn = points(one(opened, "#run .charts figure:first-child .line"))
    accuracies = [curve(1, 1, 0, epoch) for epoch in range(1, 21)]
    assert len(drawn) == 20
    (low, high), (a, b) = (accuracies[0], accuracies[-1]), (drawn[0][1], drawn[-1][1])
    for (_, y), value in zip(drawn, accuracies, strict=True):
        assert y == pytest.approx(a + (b - a) * (value - low) / (high - low), abs=0.11)


def test_a_failed_run_shows_its_log_as_text(opened, made):
    opened.get(f"{made}#missing")
    click(opened, one(opened, "#missing a[href='#run/mlp-1-1-2']"))
    assert shown(opened, "#run pre.error").text == ERROR[0]
    assert one(opened, "#run pre.log").text == ERROR[1].strip()
    assert not all_of(opened, "#run img")
    assert "failed" in one(opened, "#run h1").text


def test_a_run_that_never_was_says_so(opened, made):
    opened.get(f"{made}#run/mlp-2-1-0")
    assert "it was not run" in shown(opened, "#run").text
    for nothing in ("#run/no-such-run", "#run/%", "#cell/9-9", "#nothing"):
        opened.get(made + nothing)
        assert shown(opened, "#report")


def test_curves_are_means_with_bands(opened):
    charts = all_of(opened, "#curves-charts figure")
    assert [c.find_element("tag name", "figcaption").text for c in charts] == [
        "Validation accuracy", "Training loss", "Sparsity"]  # fmt: skip
    lines = all_of(opened, "#curves-charts figure:first-child .line")
    assert len(lines) == 3
    mean = opened.execute_script("return meanCurve([[[1, 1], [2, 4]], [[1, 2], [2, 5]], "
                                 "[[1, 3], [2, 9], [3, 1]]])")  # fmt: skip
    assert mean["points"] == [[1, 2], [2, 6]]
    assert mean["band"][0] == pytest.approx([1, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])
    assert mean["band"][1][2] == pytest.approx(6 + 4.302653 * (7 / 3) ** 0.5)


def test_rows_can_be_hidden_and_columns_chosen(opened):
    click(opened, all_of(opened, "#curves-key button")[1])
    assert len(all_of(opened, "#curves-charts figure:first-child .line")) == 2
    for column in (0, 1):
        if column:
            click(opened, all_of(opened, "#column button")[column])
        assert all_of(opened, "#column button")[column].get_attribute("aria-pressed") == "true"
        dense, rigl = map(points, all_of(opened, "#curves-charts figure:first-child .line"))
        first, last, other = mean(0, 0, 1), mean(0, 0, 20), mean(2, column, 20)
        share = (rigl[-1][1] - dense[0][1]) / (dense[-1][1] - dense[0][1])
        assert share == pytest.approx((other - first) / (last - first), abs=0.002)


def test_the_pointer_reads_a_curve(opened):
    svg = all_of(opened, "#curves-charts svg")[0]
    scroll_to(opened, svg)
    webdriver.ActionChains(opened).move_to_element(svg).perform()
    said = one(opened, "#curves-charts figure:first-child .tip").text
    assert said.split("\n") == ["epoch 9", "dense", f"{mean(0, 0, 9):.5g}", "set",
                                f"{mean(1, 0, 9):.5g}", "rigl", f"{mean(2, 0, 9):.5g}"]  # fmt: skip


def test_costs_have_a_front_and_lead_to_cells(opened):
    figures = all_of(opened, "#cost-charts figure")
    assert len(figures) == 2
    assert len(figures[1].find_elements("css selector", ".point")) == 5
    assert len(figures[1].find_elements("css selector", ".ring")) == 3
    point = figures[0].find_element("css selector", ".point[href='#cell/2-1']")
    click(opened, point)
    assert shown(opened, "dialog h2").text == "rigl, Sparsity 0.9"


def test_density_of_the_layers(opened):
    text = [row.text for row in all_of(opened, "#heat tr")]
    assert text == ["Layer dense set rigl", "fc1.weight 100 20.0 20.0", "fc2.weight 100 20.0 20.0"]
    click(opened, all_of(opened, "#layers-column button")[1])
    assert all_of(opened, "#heat tr")[1].text == "fc1.weight 100 10.0 10.0"


def test_the_keyboard_is_enough(opened):
    link = all_of(opened, "td a[href='#cell/1-0']")[0]
    opened.execute_script("arguments[0].focus()", link)
    keys = webdriver.Keys
    webdriver.ActionChains(opened).send_keys(keys.ENTER).perform()
    assert shown(opened, "dialog[open]")
    webdriver.ActionChains(opened).send_keys(keys.ESCAPE).perform()
    assert gone(opened, "dialog")
    assert opened.execute_script("return document.activeElement") == link


def test_it_fits_the_window(opened, made, width):
    """And leaves pictures for people to look at: build/screenshots."""
    for name, fragment in (("report", ""), ("cell", "#cell/1-0"), ("run", "#run/mlp-1-0-0")):
        opened.get("about:blank")
        opened.get(made + fragment)
        assert opened.execute_script("return document.documentElement.scrollWidth") == width
        picture = SCREENSHOTS / f"{name}-{width}.png"
        opened.save_screenshot(str(picture))
        assert int.from_bytes(picture.read_bytes()[16:20]) == width


def test_the_table_needs_no_script(browser, made):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get(made)
        row = one(browser, ".results tbody:nth-of-type(1) tr:nth-of-type(3)")
        assert " ".join(row.text.split()) == "set 93.10 ± 0.20 std 91.00 ± 2.48 (3) 4,440"
        assert "The table needs no JavaScript" in one(browser, "#report").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_two_tables_compared_fit_the_window(browser, width, tmp_path):
    old = {("set", "0.9", "test/accuracy"): {0: 0.90, 1: 0.91, 2: 0.92}}
    new = {("set", "0.9", "test/accuracy"): {0: 0.95, 1: 0.97, 2: 0.96}}
    path = tmp_path / "compare.html"
    path.write_text(compare_html("results/a", "results/b", 1, differences(old, new)))
    resize(browser, width)
    browser.get_log("browser")
    browser.get(path.as_uri())
    zero, bar = one(browser, ".interval"), one(browser, ".interval i")
    assert bar.rect["x"] > zero.rect["x"] + zero.rect["width"] / 2  # all of it is above zero
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    browser.save_screenshot(str(SCREENSHOTS / f"compare-{width}.png"))
    assert browser.get_log("browser") == []


def test_runs_beyond_the_budget_have_their_figures(browser, tmp_path):
    results = build(tmp_path / "runs", spec=SPEC)
    path = tmp_path / "report.html"
    path.write_text(report_html(results, sheet(results, ""), None, Budget(runs=2)))
    browser.get_log("browser")
    browser.get(f"{path.as_uri()}#run/mlp-2-1-2")
    said = one(browser, "#run").text
    assert "config, log and curves of this run are not in it: they are in" in said
    assert "89.00" in said
    assert browser.get_log("browser") == []
