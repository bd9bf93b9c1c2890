"""The page in a browser, against Python on the same pixels."""

import json
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.segment.coverage import log_contrast
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.frame import Frame, to_pixels
from sam_edge.segment.grid import first_pass, regular_grid
from sam_edge.segment.known import NANO_CONFIG, shipped_folder
from sam_edge.segment.masks import mask_of, measure
from sam_edge.segment.matching import agreement
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.records import Found, box_of, run_lengths, suppress, without_nested
from sam_edge.segment.scaling import Scaling
from sam_edge.web.site import write_site
from tests.web.browser import asked_elsewhere, opened

OUT_OF_REACH = """
    return [...document.querySelectorAll("button, select, .view")].filter((one) => one.offsetParent).filter((one) => {
        const { left, top, right, bottom } = one.getBoundingClientRect();
        return left < 0 || top < 0 || right > innerWidth || bottom > innerHeight;
    }).map((one) => one.outerHTML);
"""
"""What of the page one would have to scroll to."""
FLOAT_IOU, INT8_IOU = 0.99, 0.95
"""What masks must reach with Python's: in float, and an INT8 export's parity."""


def picture(height: int, width: int) -> np.ndarray:
    """Smooth shapes and noise."""
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(small) + rng.integers(-20, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def some_ellipse(rng: np.random.Generator) -> np.ndarray:
    """One of any place and size."""
    return ellipse_at(*rng.uniform((4, 4, 3, 3), (20, 28, 9, 12)).round().tolist())


def ellipse_at(y: float, x: float, height: float, width: float) -> np.ndarray:
    """Logits of 32 x 32 cells, of which an ellipse is positive."""
    rows, columns = np.mgrid[:32, :32]
    return (1 - np.hypot((rows - y) / height, (columns - x) / width)).astype(np.float32)


def as_found(mask: np.ndarray, score: float) -> Found:
    """A mask of a picture of its size, as everything mode holds it."""
    height, width = mask.shape
    return Found((height, width), run_lengths(mask), box_of(mask), score, 1.0, (0.0, 0.0), (0, 0, width, height))


def changed(folder: Path, target: Path, thresholds: dict[str, Any], **changes: Any) -> Path:
    """A copy of an exported folder with another config around the same graphs."""
    shutil.copytree(folder, target)
    described = json.loads((target / "model.json").read_text())
    described["config"].update(changes)
    described["config"]["thresholds"].update(thresholds)
    (target / "model.json").write_text(json.dumps(described))
    return target


def iou(record: dict[str, Any], mask: np.ndarray) -> float:
    """IoU of a record of COCO json with a mask."""
    found = coco_mask.decode(record["segmentation"]).astype(bool)
    return float((found & mask).sum() / max((found | mask).sum(), 1))


Points = list[tuple[int, int, int]]


def prompted(runtime: OnnxRuntime, image: np.ndarray, points: Points, box: Any = None) -> np.ndarray:
    """The mask that `sam-edge segment` gives."""
    predictor = SamPredictor(runtime)
    predictor.set_image(image)
    return asked(predictor, points, box)


def asked(predictor: SamPredictor, points: Points, box: Any = None) -> np.ndarray:
    """The same of a photo that is set: the best of three for a single point, else the one."""
    masks, scores, _ = predictor.predict(
        np.array([point[:2] for point in points], np.float32) if points else None,
        np.array([point[2] for point in points]) if points else None,
        None if box is None else np.array(box, np.float32),
        multimask_output=len(points) == 1 and box is None,
    )
    return masks[scores.argmax()]


def test_the_page_computes_what_python_computes(tmp_path: Path) -> None:
    image = picture(61, 83)
    Image.fromarray(image).save(tmp_path / "photo.png")
    graphs = shipped_graphs("nano")
    assert graphs is not None
    site = write_site([("nano", graphs)], tmp_path / "site").out
    shutil.copy(tmp_path / "photo.png", site)
    rng = np.random.default_rng(0)
    frame = Frame.of(61, 83, 512)
    smooth = Image.fromarray(rng.normal(size=(9, 9)).astype(np.float32)).resize((256, 256), Image.Resampling.BICUBIC)
    logits = 4 * np.asarray(smooth, np.float32)
    ellipses = [some_ellipse(rng) for _ in range(40)]
    scores = rng.choice(np.linspace(0.3, 0.9, 13), len(ellipses)).tolist()
    # the first more than eight times as large as the second, which lies on it
    ellipses += [ellipse_at(11, 16, 10, 15), ellipse_at(11, 16, 3, 4)]
    scores += [0.99, 0.98]
    with opened(site, tmp_path / "work") as page:
        assert page.driver.execute_script("return crossOriginIsolated")
        found = page.js(
            """
            const { frameOf, toPixels } = await import("./frame.js");
            const { scalingOf, maskOf, cocoCounts } = await import("./masks.js");
            const { logContrast, firstPassOf, regularGrid, suppress, withoutNested } = await import("./everything.js");
            const bitmap = await createImageBitmap(await (await fetch("photo.png")).blob());
            const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
            context.drawImage(bitmap, 0, 0);
            const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
            const model = (await (await fetch("site.json")).json()).models[0];
            const frame = frameOf(bitmap.width, bitmap.height, model.image_size);
            const mask = maskOf(Float32Array.from(given[0]), scalingOf(frame, 256), 1);
            const ellipses = given[1].map((rows, order) => {
                const cells = Float32Array.from(rows.flat());
                return { ...maskOf(cells, scalingOf(frame, 32)), iou: given[2][order], order };
            });
            const apart = suppress(ellipses);
            return {
                apart: apart.map(({ order }) => order),
                outer: withoutNested(apart, 0.8).map(({ order }) => order),
                pixels: [...toPixels(rgba, frame, model)],
                mask: { ...mask, runs: [...mask.runs] },
                counts: cocoCounts(mask.runs),
                contrast: [...logContrast(rgba, frame, regularGrid(8))],
                first: [4, 7, 8, 16, 32].map((side) => firstPassOf(regularGrid(side))),
            };
            """,
            logits.ravel().tolist(),
            [ellipse.tolist() for ellipse in ellipses],
            scores,
        )
        assert page.complaints() == []
    pixels, _ = to_pixels(image, NANO_CONFIG)
    assert np.array_equal(np.array(found["pixels"], np.float32).reshape(pixels.shape), pixels)
    scaling = Scaling.of(frame, 256)
    mask, measured = mask_of(logits, scaling), measure(logits[None], scaling, 1.0)
    assert 0.1 < mask.mean() < 0.9
    assert found["mask"]["runs"] == run_lengths(mask).tolist()
    assert found["mask"]["box"] == measured.boxes[0].tolist()
    assert found["mask"]["area"] == mask.sum()
    assert found["mask"]["stability"] == pytest.approx(measured.stability[0], rel=1e-5)
    assert found["counts"] == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert found["contrast"] == pytest.approx(log_contrast(image, regular_grid(8)).tolist(), abs=1e-4)
    at_size = Scaling.of(frame, 32)
    masks = [as_found(mask_of(cells, at_size), score) for cells, score in zip(ellipses, scores, strict=True)]
    apart = suppress(np.array([one.box for one in masks]), np.array(scores), 0.7).tolist()
    outer = without_nested([masks[index] for index in apart], 0.8)
    assert 2 < len(outer) < len(apart) < len(masks)
    assert {40, 41} <= set(found["outer"])
    assert found["apart"] == apart
    assert found["outer"] == [index for index in apart if any(masks[index] is one for one in outer)]
    assert found["first"] == [first_pass(regular_grid(side)).tolist() for side in (4, 7, 8, 16, 32)]


def test_a_server_that_only_holds_files_gives_the_page_threads_too(tmp_path: Path) -> None:
    graphs = shipped_graphs("nano")
    assert graphs is not None
    site = write_site([("nano", graphs)], tmp_path / "site").out

    def plain(folder: Path, port: int) -> ThreadingHTTPServer:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(folder)))

    with opened(site, tmp_path / "work", plain) as page:
        page.until("return crossOriginIsolated")
        page.until("return /thread/.test(document.querySelector('#machine').textContent)")
        assert page.js("return typeof SharedArrayBuffer") == "function"
        assert page.complaints() == []


def test_a_photo_is_segmented_compared_and_saved(fp32_small, tmp_path: Path) -> None:
    image = picture(110, 150)
    every = {"pred_iou": -1.0, "stability": 0.0}
    two_passes = {**every, "tau": -0.5, "coverage": "contrast", "nested": 0.8}
    folders = {
        "float": changed(fp32_small.path, tmp_path / "float", every),
        "first": changed(fp32_small.path, tmp_path / "first", two_passes),
        # the same graphs, which see another picture
        "other": changed(fp32_small.path, tmp_path / "other", every, pixel_mean=[20.0, 20.0, 200.0]),
    }
    site = write_site(list(folders.items()), tmp_path / "site").out
    Image.fromarray(image).save(site / "photo.png")
    runtimes = {name: OnnxRuntime(folder, threads=1) for name, folder in folders.items()}
    with opened(site, tmp_path / "work") as page:
        url = page.url
        page.drop(site / "photo.png")
        # a point; another, outside, with the right button; a box
        point, outside, box = (70, 40, 1), (20, 90, 0), (30, 20, 110, 90)
        (ms,) = page.click(*point[:2])
        print(f"from click to mask: {ms:.0f} ms")
        (one,) = page.masks()
        page.click(*outside[:2], button=2)
        (two,) = page.masks()
        assert iou(one, prompted(runtimes["float"], image, [point])) >= FLOAT_IOU
        assert iou(two, prompted(runtimes["float"], image, [point, outside])) >= FLOAT_IOU
        assert two["point_coords"] == [pytest.approx(place[:2], abs=1e-3) for place in (point, outside)]
        page.drag(*box)
        (boxed,) = page.masks()
        of_box = prompted(runtimes["float"], image, [], box)
        assert iou(boxed, of_box) >= FLOAT_IOU
        # what is saved as pictures is what is seen
        mask = np.asarray(Image.open(page.saved("mask")).convert("L")) > 127
        assert iou(boxed, mask) == 1
        cutout = np.asarray(Image.open(page.saved("cutout")))
        assert np.array_equal(cutout[..., 3] > 0, mask)
        assert np.array_equal(cutout[mask][:, :3], image[mask])
        shown = np.asarray(Image.open(page.saved("overlay")).convert("RGB"))
        assert np.array_equal(shown[~mask], image[~mask])
        assert not np.array_equal(shown[mask], image[mask])
        # undone, the two points are asked about again
        page.press("#bar [data-action=undo]")
        (undone,) = page.masks()
        assert undone["segmentation"] == two["segmentation"]
        # the same box of both models
        page.drag(*box)
        page.choose("compare", "other")
        page.until("return document.querySelector('.stage:nth-child(2) .alike').textContent.startsWith('IoU')")
        both = float(page.agreement().split()[1])
        other = prompted(runtimes["other"], image, [], box)
        assert both == pytest.approx((of_box & other).sum() / (of_box | other).sum(), abs=0.005)
        # what is saved is of the model that was pressed last
        page.asked(lambda: page.press(".stage:nth-child(2) .view"))
        (last,) = page.masks()
        middle = [(75, 55, 1)]
        assert iou(last, prompted(runtimes["other"], image, middle, box)) >= FLOAT_IOU
        page.choose("compare", "")
        # everything, by all points and in two passes
        for name, strategy in (("float", "grid"), ("first", "hierarchical")):
            page.choose("model", name)
            page.embedded()
            page.everything(8)
            found = page.masks()
            wanted = EverythingGenerator(runtimes[name], 8, output_mode="coco_rle", strategy=strategy).generate(image)
            print(f"everything: {len(wanted)} masks")
            assert wanted
            assert len(found) == len(wanted)
            assert agreement(wanted, found) >= FLOAT_IOU
        # by keys alone: a point in the middle, kept, and another with the other tool
        page.press("#bar [data-action=clear]")
        page.driver.execute_script("document.querySelector('.view').focus()")
        page.keys("\ue007")
        page.until("return !document.querySelector('#bar [data-action=keep]').disabled")
        page.keys("k")
        page.keys("3", "\ue012", "\ue007", "\ue014\ue014\ue014\ue015\ue015\ue015", "\ue007")
        page.until("return !document.querySelector('#bar [data-action=keep]').disabled")
        first, _ = page.masks()
        assert iou(first, prompted(runtimes["first"], image, middle)) >= FLOAT_IOU
        # another photo starts anew
        Image.fromarray(image[::-1]).save(tmp_path / "other.png")
        page.pick(tmp_path / "other.png")
        page.until("return document.querySelector('#bar [data-action=save]').disabled")
        page.press("[data-tool=in]")
        page.click(*point[:2])
        (again,) = page.masks()
        assert iou(again, prompted(runtimes["first"], image[::-1].copy(), [point])) >= FLOAT_IOU
        # on a phone everything is in reach
        phone = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        assert page.js(OUT_OF_REACH) == []
        assert page.complaints() == []
    assert asked_elsewhere(tmp_path / "work" / "net.json", url) == []


def test_nano_in_integers_answers_as_it_does_in_python(tmp_path: Path) -> None:
    graphs = shipped_graphs("nano")
    assert graphs is not None
    # as little sure as this model is of the photo's parts
    folder = changed(graphs, tmp_path / "nano", {"pred_iou": 0.1, "stability": 0.05, "tau": 1e6, "nested": 1.0})
    runtime = OnnxRuntime(folder)
    site = write_site([("nano", folder)], tmp_path / "site").out
    with Image.open(shipped_folder("sample") / "photo.jpg") as photo:
        image = np.array(photo.convert("RGB"))
    Image.fromarray(image).save(site / "photo.png")
    with opened(site, tmp_path / "work") as page:
        page.drop(site / "photo.png")
        (ms,) = page.click(300, 200)
        print(f"from click to mask: {ms:.0f} ms")
        (point,) = page.masks()
        (ms,) = page.drag(165, 15, 420, 290)
        print(f"from box to mask: {ms:.0f} ms")
        (box,) = page.masks()
        page.everything(8)
        found = page.masks()
        assert page.complaints() == []
    predictor = SamPredictor(runtime)
    predictor.set_image(image)
    assert iou(point, asked(predictor, [(300, 200, 1)])) >= INT8_IOU
    assert iou(box, asked(predictor, [], (165, 15, 420, 290))) >= INT8_IOU
    wanted = EverythingGenerator(runtime, 8, output_mode="coco_rle", strategy="hierarchical").generate(image)
    assert len(wanted) > 3
    assert agreement(wanted, found) >= INT8_IOU


@pytest.mark.slow
def test_a_photo_of_more_pixels_than_phones_hold_is_shrunk_and_the_page_says_so(fp32_small, tmp_path: Path) -> None:
    site = write_site([("small", fp32_small.path)], tmp_path / "site").out
    Image.fromarray(picture(50, 63)).resize((6300, 5000)).save(tmp_path / "photo.jpg")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    with opened(site, tmp_path / "work") as page:
        page.driver.find_element("id", "file").send_keys(str(tmp_path / "no.jpg"))
        page.until("return document.querySelector('#message').textContent.startsWith('no.jpg is not a picture')")
        page.pick(tmp_path / "photo.jpg")
        assert "masks are found and saved at 4489" in page.message()
        page.click(2000, 2000)
        (mask,) = page.masks()
        assert mask["segmentation"]["size"] == [3563, 4489]
        assert page.complaints() == []
