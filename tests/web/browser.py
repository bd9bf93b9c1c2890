"""A headless Chromium on a site, and what a person does there."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sam_edge.web.serve import server

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # what the browser asks of its makers on its own ends here
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--force-color-profile=srgb",
    "--window-size=1000,800",
)
PATIENCE_S = 120
"""For one step, on a machine that is busy with something else."""


class Page:
    """A site in a browser."""

    def __init__(self, driver: Any, url: str, downloads: Path) -> None:
        self.driver, self.url, self.downloads = driver, url, downloads
        driver.set_script_timeout(PATIENCE_S)
        driver.get(url)
        self.until("return document.querySelector('#model').options.length > 0")

    def js(self, code: str, *args: Any) -> Any:
        """What a piece of asynchronous JavaScript returns."""
        wrapped = f"""
            const done = arguments[arguments.length - 1];
            (async (...given) => {{ {code} }})(...arguments).then(
                (value) => done({{ value }}), (error) => done({{ error: String(error.stack ?? error) }}));
        """
        answer = self.driver.execute_async_script(wrapped, *args)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript."""
        end = time.monotonic() + PATIENCE_S
        while not self.driver.execute_script(condition):
            assert time.monotonic() < end, f"{condition}: {self.message()!r}"
            time.sleep(0.05)

    def message(self) -> str:
        """What the page says."""
        return str(self.driver.execute_script("return document.querySelector('#message').textContent"))

    def drop(self, file: Path) -> None:
        """Drop a photo, and wait until every model has embedded it."""
        script = """
            const bytes = await (await fetch(given[0])).arrayBuffer();
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], given[1], { type: "image/png" }));
            const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        """
        self.js(script, file.name, file.name)
        self.embedded()

    def pick(self, file: Path) -> None:
        """Choose a photo in the file dialogue."""
        self.driver.find_element("id", "file").send_keys(str(file))
        self.embedded()

    def embedded(self) -> None:
        """Wait until every model has embedded the photo."""
        self.until(
            "const all = [...document.querySelectorAll('.stage')];"
            "return all.length && all.every((stage) => /^photo/.test(stage.querySelector('.times').textContent))"
        )

    def press(self, selector: str) -> None:
        """Press a button."""
        self.driver.find_element("css selector", selector).click()

    def choose(self, select: str, value: str) -> None:
        """Choose an option."""
        self.driver.find_element("css selector", f"#{select} option[value='{value}']").click()

    def click(self, x: float, y: float, button: int = 0) -> list[float]:
        """Click on a pixel of the photo; milliseconds until each model's mask was seen."""
        return self.asked(lambda: self._pointer([(x, y)], button))

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        """Drag a box over the photo."""
        return self.asked(lambda: self._pointer([(x0, y0), (x1, y1)]))

    def keys(self, *keys: str) -> None:
        """Type, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def everything(self, points_per_side: int) -> None:
        """Find everything, and wait for it."""
        self.choose("points-per-side", str(points_per_side))
        self.press("#bar [data-action=everything]")
        self.until("return document.querySelector('#bar [data-action=everything]').textContent === 'Everything'")

    def saved(self, what: str) -> Path:
        """Save something of what is seen; the file."""
        before = set(self.downloads.iterdir())
        self.press("#bar [data-action=save]")
        self.press(f"[data-save={what}]")
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            new = [file for file in set(self.downloads.iterdir()) - before if file.suffix in (".json", ".png")]
            # until it is whole the browser keeps the name with an empty file
            if new and new[0].stat().st_size:
                return new[0]
            time.sleep(0.05)
        raise AssertionError(f"{what} was not saved: {self.message()!r}")

    def masks(self) -> list[dict[str, Any]]:
        """The masks that are seen, as the page saves them."""
        coco: dict[str, Any] = json.loads(self.saved("coco").read_text(encoding="utf-8"))
        found: list[dict[str, Any]] = coco["annotations"]
        return found

    def complaints(self) -> list[str]:
        """Errors of the console so far."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def agreement(self) -> str:
        """How alike the two models' masks are, as the second's caption has it."""
        return str(
            self.driver.execute_script("return document.querySelector('.stage:nth-child(2) .alike').textContent")
        )

    def asked(self, act: Callable[[], None]) -> list[float]:
        """Milliseconds from an act to each model's mask on the screen."""
        self.driver.execute_script("document.querySelectorAll('.view').forEach((view) => delete view.dataset.ms)")
        act()
        self.until("return [...document.querySelectorAll('.view')].every((view) => view.dataset.ms)")
        times: list[str] = self.driver.execute_script(
            "return [...document.querySelectorAll('.view')].map((view) => view.dataset.ms)"
        )
        return [float(ms) for ms in times]

    def _pointer(self, places: list[tuple[float, float]], button: int = 0) -> None:
        """Press at the first of some pixels of the (first) photo and release at the last, as a mouse would."""
        script = """
            const view = document.querySelector(".view");
            const { left, top, width, height } = view.getBoundingClientRect();
            const photo = view.querySelector("img");
            const [places, button] = given;
            const send = (kind, [x, y]) => view.dispatchEvent(new PointerEvent(kind, {
                bubbles: true, cancelable: true, button, pointerId: 1, isPrimary: true,
                clientX: left + (x / photo.naturalWidth) * width, clientY: top + (y / photo.naturalHeight) * height,
            }));
            view.setPointerCapture = () => {};
            send("pointerdown", places[0]);
            for (const place of places) send("pointermove", place);
            send("pointerup", places.at(-1));
        """
        self.js(script, places, button)


@contextmanager
def opened(site: Path, work: Path, serve: Callable[[Path, int], ThreadingHTTPServer] = server) -> Iterator[Page]:
    """A browser on a site that `serve` serves; once it is closed, `work / "net.json"` says what it asked for.

    Skips the test where there is no Chromium, no driver of it, or no selenium.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_file = shutil.which("chromedriver")
    if browser is None or driver_file is None:
        pytest.skip("Chromium or its driver is not installed")
    downloads = work / "downloads"
    downloads.mkdir(parents=True)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={work / 'profile'}", f"--log-net-log={work / 'net.json'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with serve(site, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_file))
        try:
            yield Page(driver, f"http://127.0.0.1:{serving.server_port}/", downloads)
        finally:
            driver.quit()
            serving.shutdown()


def asked_elsewhere(net_log: Path, origin: str) -> list[str]:
    """What a page and its workers asked of others than their origin, by the browser's log of its network."""
    log = json.loads(net_log.read_text(encoding="utf-8"))
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event["params"] for event in log["events"] if event["type"] == started and "params" in event]
    # what the browser asks on its own has no page for its initiator
    ours = [asked["url"] for asked in requests if asked.get("initiator", "").rstrip("/") == origin.rstrip("/")]
    assert any(url.endswith(".onnx") for url in ours), "the log does not know the workers' requests"
    return [url for url in ours if not url.startswith((origin, "blob:", "data:"))]
