"""sam_edge.runtimes.acceleration: everything mode finds on a device what it finds on the CPU, and brings back bits."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sam_edge.errors import BackendUnavailableError, DataError
from sam_edge.kernels.gpu import Device, DeviceArray
from sam_edge.runtimes import acceleration
from sam_edge.runtimes.acceleration import Bits, GpuAcceleration, open_gpu
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.observed import ObservedRuntime
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import Prediction
from tests.kernels.emulated import COMPILER, SHUFFLED, Emulation
from tests.runtimes.test_onnx_runtime import bound

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
PERMISSIVE = {"pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "points_per_side": 4, "points_per_batch": 5}


class Accelerated(OnnxRuntime):
    """Graphs on the CPU, and the kernels before and behind them on a device."""

    def __init__(self, folder: Path, device: Device, dtype: type = np.float32) -> None:
        super().__init__(folder)
        self.kernels_device, self._dtype = device, dtype
        self.acceleration = GpuAcceleration(device, self.config, self._parts)
        self.on_host: list[int] = []
        """Masks whose logits were brought to the host."""

    def _run(self, graph: str, inputs: Any) -> Any:
        get = self.kernels_device.get
        return super()._run(graph, {k: get(v) if isinstance(v, DeviceArray) else v for k, v in inputs.items()})

    def _parts(self, prediction: Prediction, sets: np.ndarray, masks: np.ndarray) -> Iterator[Any]:
        for here, logits in self._upscaled(prediction, sets, masks):
            yield here, self.kernels_device.put(logits.astype(self._dtype))

    def upscale(self, prediction: Prediction, sets: np.ndarray, masks: np.ndarray) -> np.ndarray:
        self.on_host.append(len(sets))
        return super().upscale(prediction, sets, masks)


@pytest.fixture
def accelerated(fp32) -> Accelerated:
    return Accelerated(fp32.path, Emulation(SHUFFLED))


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Records in order: the CPU sums a pixel's logits in another order, so a pixel at the threshold may differ."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one["segmentation"] ^ other["segmentation"]).mean() < 1e-3
        assert one["bbox"] == other["bbox"]
        assert one["point_coords"] == other["point_coords"]
        assert one["crop_box"] == other["crop_box"]
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-6)
        assert one["stability_score"] == pytest.approx(other["stability_score"], abs=1e-3, nan_ok=True)
        assert one["segmentation"].sum() == one["area"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "hierarchical", "tau": 0.0, "coverage": "logit"},
        {"strategy": "hierarchical", "tau": -1.0, "coverage": "contrast"},
        {"crop_n_layers": 1},
        {"box_nms_thresh": 1.0, "nested_thresh": 0.5},
        {"max_memory_bytes": 1_500_000},
    ],
    ids=["grid", "hierarchy", "hierarchy by contrast", "crops", "nested", "little memory"],
)
def test_records_are_the_cpus(options: dict[str, Any], accelerated: Accelerated, fp32, photo: np.ndarray) -> None:
    given = PERMISSIVE | options
    wanted = EverythingGenerator(fp32.runtime, **given).generate(photo)
    assert wanted
    assert_same(EverythingGenerator(accelerated, **given).generate(photo), wanted)
    # bits came back, and no logits
    assert accelerated.on_host == []
    assert {"preprocess_float", "measure_float", "box_conflicts", "keep_best"} <= set(
        accelerated.kernels_device.launches
    )


def test_logits_may_be_halves(fp32, photo: np.ndarray) -> None:
    runtime = Accelerated(fp32.path, Emulation(), np.float16)
    found = EverythingGenerator(runtime, **PERMISSIVE).generate(photo)
    wanted = EverythingGenerator(fp32.runtime, **PERMISSIVE).generate(photo)
    assert "measure_half" in runtime.kernels_device.launches
    assert np.mean([one["bbox"] == other["bbox"] for one, other in zip(found, wanted, strict=False)]) > 0.5


def test_pixels_are_those_of_the_cpu(accelerated: Accelerated, fp32, photo: np.ndarray) -> None:
    found, wanted = SamPredictor(accelerated), SamPredictor(fp32.runtime)
    found.set_image(photo)
    wanted.set_image(photo)
    np.testing.assert_array_equal(found.features, wanted.features)
    assert found.frame == wanted.frame
    # of a picture that was reduced
    found.set_image(photo, original_size=(500, 901))
    wanted.set_image(photo, original_size=(500, 901))
    np.testing.assert_array_equal(found.features, wanted.features)
    with pytest.raises(DataError, match="H x W x 3 uint8"):
        found.set_image(photo[..., :2])


def test_what_onnx_runtime_holds_is_read_where_it_is(fp32, photo: np.ndarray) -> None:
    """Its bound values, of which a device's kernels are given the addresses, and which are given theirs."""
    runtime, device = bound(fp32.path), Emulation()
    waited = []
    runtime._gpu = SimpleNamespace(synchronise=lambda: waited.append(len(device.launches)))
    runtime.acceleration = GpuAcceleration(device, runtime.config, runtime._parts)
    wanted = EverythingGenerator(fp32.runtime, **PERMISSIVE).generate(photo)
    assert_same(EverythingGenerator(runtime, **PERMISSIVE).generate(photo), wanted)
    # the picture was there before the encoder read it
    assert waited[0] == device.launches.index("preprocess_float") + 1


def test_an_account_is_kept_of_what_the_device_does(accelerated: Accelerated, fp32, photo: np.ndarray) -> None:
    accounts = []
    for runtime in (accelerated, fp32.runtime):
        observed = ObservedRuntime(runtime)
        EverythingGenerator(observed, **PERMISSIVE).generate(photo)
        accounts.append((observed.points, observed.upscaled, observed.decoder_calls))
    assert accounts[0] == accounts[1]
    assert ObservedRuntime(fp32.runtime).acceleration is None


def test_a_mask_takes_its_bits(accelerated: Accelerated, photo: np.ndarray) -> None:
    bits = []
    init = Bits.__init__

    def noted(self: Bits, words: np.ndarray, height: int) -> None:
        bits.append(words)
        init(self, words, height)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bits, "__init__", noted)
        EverythingGenerator(accelerated, **PERMISSIVE).generate(photo)
    assert bits
    # 50 x 90 pixels: two words down each column
    assert {words.nbytes for words in bits} == {90 * 2 * 4}


def test_the_gpu_is_opened_only_where_its_kernels_can_be_had(
    monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig
) -> None:
    class Target:
        target = "sm89"

    def absent(*given: object) -> None:
        raise BackendUnavailableError("nothing here.")

    monkeypatch.delenv("SAM_EDGE_KERNELS", raising=False)
    monkeypatch.setattr(acceleration, "Gpu", Target)
    monkeypatch.setattr(acceleration, "cubin_of", lambda source, target: b"")
    assert isinstance(open_gpu(), Target)
    assert acceleration.acceleration(None, tiny_config, lambda *given: []) is None
    assert acceleration.acceleration(open_gpu(), tiny_config, lambda *given: []) is not None
    monkeypatch.setattr(acceleration, "cubin_of", absent)
    assert open_gpu() is None
    monkeypatch.setattr(acceleration, "Gpu", absent)
    assert open_gpu() is None
    monkeypatch.setenv("SAM_EDGE_KERNELS", "off")
    monkeypatch.setattr(acceleration, "Gpu", Target)
    monkeypatch.setattr(acceleration, "cubin_of", lambda source, target: pytest.fail("compiled"))
    assert open_gpu() is None
