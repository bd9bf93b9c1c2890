"""The report of `sam-edge run`: `report.md`, `report.html` and `report.json` of one run, from the same numbers."""

import json
from pathlib import Path

from sam_edge.bench.plots import accuracy_speed_png
from sam_edge.bench.report_changes import as_dict
from sam_edge.bench.report_data import LayerCost, LayerTime, Picture, Report, StepReport
from sam_edge.bench.report_html import html
from sam_edge.bench.report_markdown import markdown, summary
from sam_edge.bench.verdict import did_not_pay
from sam_edge.errors import DataError
from sam_edge.files import atomic_file

__all__ = ["LayerCost", "LayerTime", "Picture", "Report", "StepReport", "did_not_pay", "summary", "write_report"]

SCHEMA = 1
PLOT_FILE = "accuracy_speed.png"


def write_report(report: Report, folder: str | Path) -> Path:
    """Write the report's three files into `folder`, each atomically, and return the HTML's path.

    `report.html` stands alone. `report.md` shows the plot and the pictures from PNG files written beside it.

    Raises:
        DataError: a picture that cannot be read or is no PNG. SamEdgeError: the disk refuses the write.
    """
    folder = Path(folder)
    pictures = [_read_png(picture.png_path) for picture in report.pictures]
    light, dark = accuracy_speed_png(report.steps), accuracy_speed_png(report.steps, dark=True)
    plots = None if light is None or dark is None else (light, dark)
    picture_files = [f"picture_{number}.png" for number in range(1, len(pictures) + 1)]
    files = dict(zip(picture_files, pictures, strict=True))
    if light is not None:
        files[PLOT_FILE] = light
    content = {"schema": SCHEMA} | as_dict(report) | {"did_not_pay": did_not_pay(report)}
    texts = {
        "report.md": markdown(report, PLOT_FILE if light is not None else None, picture_files),
        "report.json": json.dumps(content, indent=1) + "\n",
        "report.html": html(report, plots, pictures),
    }
    files |= {name: text.encode() for name, text in texts.items()}
    for name, data in files.items():
        with atomic_file(folder / name) as part:
            part.write_bytes(data)
    return folder / "report.html"


def _read_png(path: Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read for the report: {error.strerror}.") from error
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"{path} is not a PNG file: the report takes nothing else.")
    return content
