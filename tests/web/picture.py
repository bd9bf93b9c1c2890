"""The README's picture of the page: `python -m tests.web.picture docs/page.webp`; needs Chromium and its driver."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.web.site import write_site
from tests.web.browser import opened

SIZE = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
BOX, INSIDE, OUTSIDE = (175, 18, 420, 270), ((290, 140), (250, 90)), ((175, 25), (412, 25), (185, 285))
"""What is asked of the sample photo, in its pixels."""


def main() -> None:
    """nano in integers beside nano in float, asked of the sample photo by a box and points."""
    graphs = shipped_graphs("nano")
    assert graphs is not None
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        subprocess.run([sys.executable, "-m", "sam_edge", "export-onnx", "nano", "--out", work / "float"], check=True)
        site = write_site([("nano", graphs), ("nano-float", work / "float")], work / "site").out
        with opened(site, work / "browser") as page:
            page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZE)
            page.choose("compare", "nano-float")
            page.press("#welcome [data-action=sample]")
            page.embedded()
            page.drag(*BOX)
            for point in INSIDE:
                page.click(*point)
            for point in OUTSIDE:
                page.click(*point, button=2)
            shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    shot.save(sys.argv[1], quality=85, method=6)


if __name__ == "__main__":
    main()
