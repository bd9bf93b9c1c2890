#!/usr/bin/env python3
"""Build TensorRT engines of this folder's graphs on this machine's GPU, check them on the inputs beside them, run them.

    python3 on_device.py build            # once: minutes
    python3 on_device.py check            # masks and predicted IoU against those of the folder
    python3 on_device.py time             # milliseconds per call, after a warm-up
    python3 on_device.py segment photo.jpg --box 165,15,420,290 --out mask.pgm

Needs TensorRT's Python package (10 or newer, or TensorRT-RTX), numpy and pycuda; Pillow for pictures other than .ppm.
Nothing of sam-edge is needed. `bundle.json` says what the graphs take, `engines.json` what was built here, by which
version and for which GPU; engines of others are built again, not loaded.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
BUILT = "engines.json"
LOG = "build.log"


class Failed(Exception):
    """What ends the program: one line."""


def library():
    """TensorRT's module, or TensorRT-RTX's."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return __import__(name)
        except ImportError:
            continue
    raise Failed("neither tensorrt nor tensorrt_rtx can be imported: on a Jetson, sudo apt install python3-libnvinfer.")


def driver():
    """pycuda's driver, with a context."""
    try:
        import pycuda.autoprimaryctx
        import pycuda.driver

        return pycuda.driver
    except ImportError as error:
        raise Failed(f"pycuda cannot be imported ({error}): pip install pycuda, where a CUDA toolkit is.") from error


def this_gpu(cuda):
    """Compute capability of the first GPU, as sm87."""
    major, minor = cuda.Device(0).compute_capability()
    return f"sm{major}{minor}"


def bundle():
    """What the folder says of itself, once its files are those that it speaks of."""
    values = json.loads((HERE / "bundle.json").read_text())
    for name, digest in values["sha256"].items():
        path = HERE / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise Failed(f"{path} is missing or was changed: copy the folder again.")
    return values


def build(trt, cuda):
    """Every graph's engine, and what was built by what."""
    values = bundle()
    lines = []

    base: Any = trt.ILogger

    class Log(base):
        def __init__(self):
            base.__init__(self)

        def log(self, severity, message):
            if severity != trt.ILogger.VERBOSE:
                lines.append(f"{severity}: {message}")

    log = Log()
    described = {"version": trt.__version__, "gpu": this_gpu(cuda), "engines": {}}
    # what another version or GPU timed does not fit
    timings = HERE / f"timings-{described['version']}-{described['gpu']}.cache"
    for name, graph in values["graphs"].items():
        start = time.perf_counter()
        builder = trt.Builder(log)
        # TensorRT 10 asks for it, 11 knows nothing else: types are the file's
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, log)
        config = builder.create_builder_config()
        if trt.__name__ == "tensorrt_rtx":
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        parsed = parser.parse_from_file(str(HERE / graph["file"]))
        serialized = None
        if parsed:
            profile = builder.create_optimization_profile()
            for tensor, steps in graph["shapes"].items():
                profile.set_shape(tensor, steps["min"], steps["opt"], steps["max"])
            config.add_optimization_profile(profile)
            # TensorRT-RTX times nothing
            times = trt.__name__ == "tensorrt"
            if times:
                known = timings.read_bytes() if timings.is_file() else b""
                config.set_timing_cache(config.create_timing_cache(known), False)
            serialized = builder.build_serialized_network(network, config)
            if serialized is not None and times:
                timings.write_bytes(bytes(config.get_timing_cache().serialize()))
        (HERE / LOG).write_text("\n".join(lines) + "\n")
        if serialized is None:
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise Failed(f"{graph['file']} was not built: {'; '.join(errors) or lines[-1:]}; see {HERE / LOG}.")
        content = bytes(serialized)
        (HERE / f"{name}.engine").write_bytes(content)
        seconds = time.perf_counter() - start
        described["engines"][name] = {
            "onnx_sha256": values["sha256"][graph["file"]],
            "sha256": hashlib.sha256(content).hexdigest(),
            "state": "built, not run",
        }
        print(f"{name}: {len(content) / 1e6:.1f} MB in {seconds:.0f} s")
    (HERE / BUILT).write_text(json.dumps(described, indent=1) + "\n")


class Engines:
    """The engines on the GPU; arrays stay there until they are asked for."""

    def __init__(self, trt, cuda):
        self.values = bundle()
        built = HERE / BUILT
        if not built.is_file():
            raise Failed("nothing is built here yet: python3 on_device.py build.")
        self.built = json.loads(built.read_text())
        here = {"version": trt.__version__, "gpu": this_gpu(cuda)}
        for what, now in here.items():
            if self.built[what] != now:
                raise Failed(f"engines were built for {what} {self.built[what]}, and {now} is here: build again.")
        self._trt, self._cuda, self._stream = trt, cuda, cuda.Stream()
        self._log = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._log)
        self._contexts = {}
        for name, graph in self.values["graphs"].items():
            content = (HERE / f"{name}.engine").read_bytes()
            told = self.built["engines"][name]
            if hashlib.sha256(content).hexdigest() != told["sha256"]:
                raise Failed(f"{name}.engine was changed since it was built: build again.")
            if told["onnx_sha256"] != self.values["sha256"][graph["file"]]:
                raise Failed(f"{name}.engine was built from another {graph['file']}: build again.")
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise Failed(f"{name}.engine does not load: build again.")
            self._contexts[name] = (engine, engine.create_execution_context())

    def run(self, name, inputs):
        """The outputs of one graph, on the GPU, by name: (memory, shape, type)."""
        engine, context = self._contexts[name]
        given = {}
        for tensor, steps in self.values["graphs"][name]["shapes"].items():
            value = self._on_gpu(inputs[tensor])
            shape = value[1]
            if len(shape) != len(steps["max"]) or not all(
                low <= size <= high for low, size, high in zip(steps["min"], shape, steps["max"], strict=True)
            ):
                raise Failed(f"{name} takes {tensor} from {steps['min']} to {steps['max']}, got {list(shape)}.")
            context.set_input_shape(tensor, shape)
            context.set_tensor_address(tensor, int(value[0]))
            given[tensor] = value
        outputs = {}
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            if engine.get_tensor_mode(tensor) == self._trt.TensorIOMode.OUTPUT:
                shape, kind = tuple(context.get_tensor_shape(tensor)), self._numpy(engine.get_tensor_dtype(tensor))
                memory = self._cuda.mem_alloc(max(1, int(np.prod(shape))) * np.dtype(kind).itemsize)
                context.set_tensor_address(tensor, int(memory))
                outputs[tensor] = (memory, shape, kind)
        if not context.execute_async_v3(self._stream.handle):
            raise Failed(f"{name} did not run.")
        # what was copied here is freed when this returns
        self._stream.synchronize()
        return outputs

    def _numpy(self, kind):
        # bfloat16 never leaves the GPU; NumPy has no name for it
        return np.uint16 if kind == self._trt.DataType.BF16 else self._trt.nptype(kind)

    def _on_gpu(self, value):
        if not isinstance(value, np.ndarray):
            return value
        value = np.ascontiguousarray(value)
        memory = self._cuda.mem_alloc(max(1, value.nbytes))
        self._cuda.memcpy_htod(memory, value)
        return (memory, value.shape, value.dtype)

    def host(self, value):
        """An output as an array."""
        memory, shape, kind = value
        array = np.empty(shape, kind)
        self._cuda.memcpy_dtoh(array, memory)
        return array

    def decoded(self, pixels, prompts):
        """Mask logits and predicted IoU of one picture, by the whole decoder."""
        embeddings = self.run("encoder", {"pixels": pixels})["embeddings"]
        outputs = self.run("decoder", {"embeddings": embeddings, **prompts})
        return self.host(outputs["logits"]), self.host(outputs["iou"])

    def split(self, pixels, prompts):
        """Mask logits of all prompt sets by everything mode's three graphs."""
        embeddings = self.run("encoder", {"pixels": pixels})["embeddings"]
        image = {"embeddings": embeddings, **self.run("prepare", {"embeddings": embeddings})}
        coords, labels = prompts["point_coords"], prompts["point_labels"]
        sets = self.run("predict", {**image, "point_coords": coords, "point_labels": labels})
        count = labels.shape[1]
        wanted = {"places": np.arange(count).repeat(4), "masks": np.tile(np.arange(4), count)}
        logits = self.host(self.run("upscale", {**image, **sets, **wanted})["logits"])
        return logits.reshape(count, 4, *logits.shape[1:])[None]


def agreement(a, b):
    """Mean IoU of masks at logit 0; two empty masks agree."""
    first, second = a > 0, b > 0
    common, union = (first & second).sum((-2, -1)), (first | second).sum((-2, -1))
    return float(np.where(union > 0, common / np.maximum(union, 1), 1.0).mean())


def prompts_of(stored, kind):
    """The prompt inputs of the stored case `points` or `boxes`, as the decoder takes them."""
    names = ("point_coords", "point_labels", "mask_input", "has_mask_input")
    return {name: stored[f"{kind}_{name}"] for name in names}


def check(trt, cuda):
    """Masks here against those stored, computed in float32; the engines that pass are marked as run."""
    engines, stored = Engines(trt, cuda), np.load(HERE / "parity.npz")
    least, worst = engines.values["smallest_iou"], 1.0
    for kind in ("points", "boxes"):
        prompts = prompts_of(stored, kind)
        whole, iou = engines.decoded(stored["pixels"], prompts)
        parts = engines.split(stored["pixels"], prompts)
        for name, logits in (("decoder", whole), ("split decoder", parts)):
            found = agreement(logits, stored[f"{kind}_logits"]) if np.isfinite(logits).all() else 0.0
            worst = min(worst, found)
            print(f"{kind}, {name}: mean mask IoU {found:.4f}")
        print(f"{kind}: predicted IoU differs by at most {np.abs(iou - stored[f'{kind}_iou']).max():.4f}")
    if worst < least:
        raise Failed(f"masks agree to {worst:.4f}, below {least}: do not use these engines; see {HERE / LOG}.")
    for told in engines.built["engines"].values():
        told["state"] = "run"
    (HERE / BUILT).write_text(json.dumps(engines.built, indent=1) + "\n")


def measure(trt, cuda, runs=20):
    """Milliseconds of encoder and decoder with their copies: median of `runs` after three that do not count."""
    engines, stored = Engines(trt, cuda), np.load(HERE / "parity.npz")
    prompts = prompts_of(stored, "boxes")
    embeddings = engines.run("encoder", {"pixels": stored["pixels"]})["embeddings"]
    calls = {
        "encoder": lambda: engines.run("encoder", {"pixels": stored["pixels"]}),
        "decoder": lambda: engines.host(engines.run("decoder", {"embeddings": embeddings, **prompts})["logits"]),
    }
    for name, call in calls.items():
        times = []
        for _ in range(runs + 3):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        print(f"{name}: {np.median(times[3:]):.2f} ms (median of {runs}, copies included)")


def read_picture(path):
    """H x W x 3 uint8 of a binary .ppm, or of anything that Pillow opens."""
    content = path.read_bytes()
    if content[:2] == b"P6":
        fields = content.split(None, 4)
        width, height = int(fields[1]), int(fields[2])
        return np.frombuffer(content[-3 * width * height :], np.uint8).reshape(height, width, 3)
    try:
        from PIL import Image
    except ImportError as error:
        raise Failed(f"{path} is not a binary .ppm, and Pillow is not here to open it.") from error
    return np.array(Image.open(path).convert("RGB"))


def matrix(before, after, widest):
    """Linear interpolation of `before` values at `after` places; a shrinking one averages over up to `widest` steps."""
    scale = before / after
    reach = min(max(scale, 1.0), widest)
    centres = np.clip((np.arange(after) + 0.5) * scale - 0.5, 0, before - 1)
    found = np.maximum(0, 1 - np.abs(np.arange(before) - centres[:, None]) / reach)
    return (found / found.sum(1, keepdims=True)).astype(np.float32)


def resized(image, height, width):
    """H x W x 3 as Pillow's bilinear resizes it, whose triangle widens with the shrinking."""
    rows = np.tensordot(matrix(image.shape[0], height, np.inf), image.astype(np.float32), 1)
    return np.rint(np.moveaxis(np.tensordot(matrix(image.shape[1], width, np.inf), rows, ([1], [1])), 0, 1))


def interpolated(logits, height, width):
    """Logits at another size, linearly."""
    return matrix(logits.shape[0], height, 1) @ logits @ matrix(logits.shape[1], width, 1).T


def segment(trt, cuda, photo, box, out):
    """One mask by one box, as a .pgm of the picture's size."""
    engines, image = Engines(trt, cuda), read_picture(photo)
    values, (height, width) = engines.values, image.shape[:2]
    size = values["image_size"]
    scale = size / max(height, width)
    inner = int(height * scale + 0.5), int(width * scale + 0.5)
    mean, std = (np.array(values[name], np.float32) for name in ("pixel_mean", "pixel_std"))
    normal = (resized(image, *inner) - mean) / std
    pixels = np.zeros((1, 3, size, size), np.float32)
    pixels[0, :, : inner[0], : inner[1]] = normal.transpose(2, 0, 1)
    shrunk = np.array([inner[1] / width, inner[0] / height], np.float32)
    corners = np.array(box, np.float32).reshape(1, 1, 2, 2) * shrunk
    side = values["mask_size"]
    logits, iou = engines.decoded(
        pixels,
        {
            "point_coords": corners,
            "point_labels": np.array([[[2, 3]]]),
            "mask_input": np.zeros((1, 1, 1, side, side), np.float32),
            "has_mask_input": np.zeros((1, 1), np.float32),
        },
    )
    # to the frame, of which the picture is a part, and to the picture's own size
    inside = interpolated(logits[0, 0, 0], size, size)[: inner[0], : inner[1]]
    mask = interpolated(inside, height, width) > 0
    out.write_bytes(b"P5 %d %d 255\n" % (width, height) + (mask * np.uint8(255)).tobytes())
    print(f"{out}: {mask.sum()} pixels, predicted IoU {iou[0, 0, 0]:.3f}")


def main(argv=None):
    """Run one command; 1 for what went wrong, in one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "check", "time"):
        commands.add_parser(name)
    one = commands.add_parser("segment")
    one.add_argument("photo", type=Path)
    one.add_argument("--box", required=True, help="X0,Y0,X1,Y1 in pixels")
    one.add_argument("--out", type=Path, default=Path("mask.pgm"))
    args = parser.parse_args(argv)
    try:
        trt, cuda = library(), driver()
        if args.command == "segment":
            box = [float(number) for number in args.box.split(",")]
            if len(box) != 4:
                raise Failed(f"--box takes X0,Y0,X1,Y1, got {args.box}.")
            segment(trt, cuda, args.photo, box, args.out)
        else:
            {"build": build, "check": check, "time": measure}[args.command](trt, cuda)
    except (Failed, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
