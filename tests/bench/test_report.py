"""The report: every number appears, nothing is invented, and the page stands alone."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_edge.bench.plots import accuracy_speed_caption, accuracy_speed_png
from sam_edge.bench.report import LayerCost, LayerTime, Picture, Report, StepReport, write_report
from sam_edge.bench.report_changes import METRICS, cell
from sam_edge.errors import DataError

BASE = StepReport(
    name="base",
    parent=None,
    kind="checkpoint",
    runtime="torch",
    parameters=93_700_000,
    file_bytes=15_000_000,
    miou_box=0.722,
    latency_ms=21.8,
    peak_bytes=1_400_000_000,
)
SMALL = StepReport(
    name="small <1>",
    parent="base",
    kind="compress",
    runtime="torch",
    parameters=26_100_000,
    file_bytes=4_650_000,
    miou_box=0.710,
    latency_ms=12.1,
    note="uses `half` of the channels",
)
UNTIMED = StepReport(name="untimed", parent="base", kind="quantize", miou_box=0.69)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Three steps and a picture."""
    picture = tmp_path_factory.mktemp("pictures") / "seen.png"
    cv2.imwrite(str(picture), np.full((8, 8, 3), 200, np.uint8))
    return Report(
        title="Garden & house",
        command="sam-edge run recipe.toml",
        recipe='name = "<garden>"',
        hardware={"cpu": "A76", "versions": {"torch": "2.9"}},
        steps=(BASE, SMALL, UNTIMED),
        pictures=(Picture("Bees", picture, "before and after"),),
        notes=("20 pictures of the `val` split",),
    )


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, written."""
    return write_report(report, tmp_path_factory.mktemp("report")).parent


class Links(HTMLParser):
    """Every address that a page would load, and its open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def metric(name: str):
    """The metric of that name."""
    return next(metric for metric in METRICS if metric.name == name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("latency_ms", "12.1 ms (1.8x faster)"),
        ("miou_box", "0.710 (-0.012)"),
        ("file_bytes", "4.65 MB (0.31x)"),
        ("parameters", "26.1 M (0.28x)"),
        ("peak_bytes", "—"),
        ("decode_ms", "—"),
    ],
)
def test_a_cell_is_the_value_and_its_change_against_the_parent(name: str, text: str) -> None:
    assert str(cell(metric(name), SMALL, BASE)) == text


def test_without_a_parent_or_its_number_there_is_no_change() -> None:
    assert str(cell(metric("latency_ms"), SMALL, None)) == "12.1 ms"
    assert str(cell(metric("latency_ms"), SMALL, UNTIMED)) == "12.1 ms"
    assert str(cell(metric("latency_ms"), SMALL, replace(BASE, latency_ms=0.0))) == "12.1 ms"


def test_better_is_good_worse_is_bad_and_noise_is_neither() -> None:
    def tone(name: str, value: float, before: float) -> str:
        return cell(metric(name), replace(SMALL, **{name: value}), replace(BASE, **{name: before})).tone

    assert [tone("latency_ms", ms, 10.0) for ms in (5, 9.9, 10.2, 12)] == ["good", "", "", "bad"]
    assert [tone("miou_box", score, 0.7) for score in (0.8, 0.69, 0.6)] == ["good", "", "bad"]
    assert [tone("file_bytes", size, 100) for size in (50, 102, 120)] == ["good", "", "bad"]
    assert cell(metric("latency_ms"), replace(SMALL, latency_ms=21.81), BASE).change == "same"


def test_the_numbers_appear_in_all_three_files(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    for shown in ("12.1 ms (1.8x faster)", "0.710 (-0.012)", "4.65 MB (0.31x)", "93.7 M", "1.40 GB", "A76"):
        assert shown in text
    assert "| untimed | base | quantize | — | — | 0.690 (-0.032) | — | — | — |" in text
    assert "`untimed` loses 0.032 of mean IoU by box" in text
    html = (folder / "report.html").read_text()
    for shown in (
        "12.1 ms",
        "(1.8x faster)",
        "(-0.012)",
        "(0.31x)",
        "<code>untimed</code> loses 0.032",
        "A76",
    ):
        assert shown in html
    found = json.loads((folder / "report.json").read_text())
    small = found["steps"][1]
    assert small["latency_ms"] == 12.1
    assert small["change"]["latency_ms"] == pytest.approx(12.1 / 21.8)
    assert small["change"]["miou_box"] == pytest.approx(-0.012)
    assert found["steps"][2]["latency_ms"] is None
    assert len(found["did_not_pay"]) == 1


def test_the_page_loads_nothing_and_is_well_formed(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    links = Links()
    links.feed(html)
    assert links.open == []
    # the plot, light and dark, and the picture
    assert len(links.found) == 3
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    # one script, in the page itself
    assert html.count("<script") == html.count("<script>") == 1
    assert "prefers-color-scheme: dark" in html


def test_text_is_escaped(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "Garden &amp; house" in html
    assert "small &lt;1&gt;" in html
    assert "&lt;garden&gt;" in html
    assert "<garden>" not in html


def test_markdowns_pictures_lie_beside_it_and_no_path_of_the_machine_is_told(report: Report, folder: Path) -> None:
    text = (folder / "report.md").read_text()
    files = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert files == ["accuracy_speed.png", "picture_1.png"]
    assert all((folder / file).read_bytes().startswith(b"\x89PNG") for file in files)
    for name in ("report.md", "report.html", "report.json"):
        assert str(report.pictures[0].png_path.parent) not in (folder / name).read_text()


def test_a_report_without_a_single_measurement_is_all_dashes(tmp_path: Path) -> None:
    steps = (StepReport("a", None, "checkpoint"), StepReport("b", "a", "compress", latency_ms=float("nan")))
    write_report(Report("Bare", "", "", {}, steps), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| b | a | compress | — | — | — | — | — | — |" in text
    assert "nan" not in text.lower()
    assert "Nothing, as far as it was measured" in text
    assert not (tmp_path / "accuracy_speed.png").exists()
    assert json.loads((tmp_path / "report.json").read_text())["steps"][1]["latency_ms"] is None


def test_layers_are_shown_by_what_their_rounding_costs_and_by_their_time(tmp_path: Path) -> None:
    rounding = tuple(LayerCost(f"encoder.{n}", 0.75 / 2**n, 1.5 if n < 2 else None) for n in range(24))
    layers = (LayerTime("MatMul (12)", 20.0, 4.0),)
    write_report(Report("t", "c", "", {}, (BASE,), layers=layers, rounding=rounding), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| encoder.0 | 0.75 | 50.0% | 1.50 ms |" in text
    assert "| encoder.2 | 0.188 | 12.5% | — |" in text
    assert "| MatMul (12) | 20.0 ms | 4.00 ms | 5.0x |" in text
    assert "encoder.20" not in text
    assert "The other 4 are in `report.html`" in text
    html = (tmp_path / "report.html").read_text()
    assert '<th scope="row">encoder.23</th>' in html
    # sorted by the numbers, and last where there is none
    assert '<th scope="row">encoder.2</th><td data-value="0.1875">0.188</td>' in html
    assert "<td>—</td></tr>" in html
    first = json.loads((tmp_path / "report.json").read_text())["rounding"][0]
    assert first == {"name": "encoder.0", "nats": 0.75, "ms": 1.5}


def test_a_fence_in_the_recipe_does_not_end_the_markdowns(tmp_path: Path) -> None:
    write_report(Report("t", "c", "a\n```\nb", {}, (BASE,)), tmp_path)
    assert "````\na\n```\nb\n````" in (tmp_path / "report.md").read_text()


def test_the_plot_names_what_it_leaves_out() -> None:
    caption = accuracy_speed_caption((BASE, SMALL, UNTIMED))
    assert "Left out, for want of one of the two numbers: `untimed`." in caption
    assert "`base`" not in caption
    assert accuracy_speed_png((UNTIMED,)) is None


def test_the_plot_is_drawn_light_and_dark_even_of_one_step() -> None:
    light, dark = (accuracy_speed_png((BASE,), dark=dark) for dark in (False, True))
    means = [cv2.imdecode(np.frombuffer(png or b"", np.uint8), cv2.IMREAD_COLOR).mean() for png in (light, dark)]
    assert means[0] > 200
    assert means[1] < 60


def test_a_picture_that_is_missing_or_no_png_is_refused(report: Report, tmp_path: Path) -> None:
    missing = replace(report, pictures=(Picture("t", tmp_path / "none.png"),))
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        write_report(missing, tmp_path / "out")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match="not a PNG"):
        write_report(replace(report, pictures=(Picture("t", tmp_path / "text.png"),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_parents_and_repeated_names_are_refused() -> None:
    with pytest.raises(ValueError, match="parent must be one of"):
        Report("t", "c", "r", {}, (SMALL,))
    with pytest.raises(ValueError, match="different names"):
        Report("t", "c", "r", {}, (BASE, BASE))
