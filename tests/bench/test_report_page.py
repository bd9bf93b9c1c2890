"""The report, the roofline's chart and the results in headless Chromium: no error, no request, tables that sort."""

import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_edge.bench.kernels import Rates
from sam_edge.bench.report import LayerCost, LayerTime, Picture, Report, StepReport, write_report
from sam_edge.bench.roofline import chart, nodes_of
from sam_edge.studies.results import BLOCK, ROOT
from tests.web.browser import FLAGS

STEPS = (
    StepReport("base", None, "checkpoint", "torch", file_bytes=15_000_000, miou_box=0.72, latency_ms=9.5),
    StepReport("middle", "base", "compress", "torch", file_bytes=4_000_000, miou_box=0.7, latency_ms=112.0),
    StepReport("last", "middle", "quantize", file_bytes=2_000_000, miou_box=0.69),
)


@pytest.fixture
def driver(tmp_path: Path):
    """A browser with a profile of its own; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_file = shutil.which("chromedriver")
    if browser is None or driver_file is None:
        pytest.skip("Chromium or its driver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_file))
    yield found
    found.quit()


def column(driver, number: int) -> list[str]:
    """First words of the first table's cells."""
    rows = "[...document.querySelector('table').tBodies[0].rows]"
    return driver.execute_script(f"return {rows}.map((row) => row.cells[{number}].firstChild.textContent)")


@pytest.mark.slow
def test_the_report_opens_and_sorts(driver, tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    cv2.imwrite(str(picture), np.full((8, 8, 3), 200, np.uint8))
    layers = (LayerTime("MatMul (12)", 20.0, 4.0), LayerTime("Add (3)", 2.0, 0.0))
    costs = (("q", 0.5, None), ("k", 0.25, 9.0), ("v", 0.125, 10.0))
    rounding = tuple(LayerCost(*cost) for cost in costs)
    pictures = (Picture("Bees", picture),)
    report = Report("A report", "sam-edge run", "{}", {"cpu": "A76"}, STEPS, pictures, layers=layers, rounding=rounding)
    page = write_report(report, tmp_path / "report")
    driver.get(page.as_uri())
    heads = driver.execute_script(
        "return [...document.querySelectorAll('table')[0].tHead.rows[0].cells].map((head) => head.textContent)"
    )
    encode = heads.index("Encode")
    click = f"document.querySelectorAll('table')[0].tHead.rows[0].cells[{encode}].firstChild.click()"
    assert column(driver, 0) == ["base", "middle", "last"]
    driver.execute_script(click)
    # by numbers, not by text, and what was not measured stays last
    assert column(driver, 0) == ["base", "middle", "last"]
    driver.execute_script(click)
    assert column(driver, 0) == ["middle", "base", "last"]
    driver.execute_script(click.replace(f"cells[{encode}]", "cells[0]"))
    assert column(driver, 0) == ["base", "last", "middle"]
    assert "Where the last encoder's time goes" in driver.page_source
    # the last of the tables: by time, the fastest first, and what has none last
    last = "[...document.querySelectorAll('table')].at(-1)"
    driver.execute_script(f"{last}.tHead.rows[0].cells[3].firstChild.click()")
    rows = f"return [...{last}.tBodies[0].rows].map((row) => row.cells[0].textContent)"
    assert driver.execute_script(rows) == ["k", "v", "q"]
    assert all(driver.execute_script("return [...document.images].map((image) => image.naturalWidth > 0)"))
    asked = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in asked if not name.startswith("data:")] == []
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_the_chart_of_the_roofline_opens(driver, tmp_path: Path) -> None:
    arguments = {"op_name": "MatMul", "node_index": "1", "input_type_shape": [{"float": [64, 160]}]}
    arguments["output_type_shape"] = [{"float": [64, 480]}]
    events = [{"cat": "Node", "name": "node_kernel_time", "dur": 9000, "args": arguments}] * 2
    file = tmp_path / "roofline.svg"
    file.write_text(chart(nodes_of(events, Rates(1e9, 1e9)), "nano's encoder"))
    driver.get(file.as_uri())
    width = driver.execute_script("return document.querySelector('rect.bar').getBoundingClientRect().width")
    assert width > 100
    assert "MatMul 64 x 480" in driver.execute_script("return document.documentElement.textContent")
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_the_tables_of_the_results_open(driver, tmp_path: Path) -> None:
    """docs/results.md as the documentation shows it: each of its tables, and nothing asked of another host."""
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    source = ROOT / "docs" / "results.md"
    (tmp_path / "docs").mkdir()
    shutil.copy(source, tmp_path / "docs" / "index.md")
    (tmp_path / "zensical.toml").write_text('[project]\nsite_name = "results"\n[project.theme]\nfont = false\n')
    subprocess.run([sys.executable, "-m", "zensical", "build"], cwd=tmp_path, check=True, capture_output=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = f"http://127.0.0.1:{server.server_address[1]}/"
        driver.get(own)
        every = "[...document.querySelectorAll('article table')]"
        shown = driver.execute_script(f"return {every}.map((one) => one.innerText)")
        asked = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        server.shutdown()
    tables = [match[3] for match in BLOCK.finditer(source.read_text(encoding="utf-8"))]
    assert len(shown) == len(tables)
    for text, table in zip(shown, tables, strict=True):
        cells = [cell.strip() for row in table.splitlines() if row.startswith("| ") for cell in row.split(" | ")]
        assert all(cell.strip("| *") in text for cell in cells if not set(cell) <= set("-: |"))
    assert [name for name in asked if not name.startswith((own, "data:"))] == []
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
