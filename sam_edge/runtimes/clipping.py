"""Integer graphs on x86 CPUs without VNNI, which do not multiply uint8 by int8 rightly.

AVX2 and plain AVX-512 add two such products in 16 bits and clip the sum: 255 x 127 twice is too much. ONNX Runtime and
OpenVINO take that for speed. Of uint8 by uint8 nothing is clipped, and an int8 grid with zero point z is the uint8 grid
with zero point z + 128: the same values, moved by 128. In an ONNX file that is the highest bit of every byte of such a
tensor, and the lowest of its type (INT8 is 3, UINT8 is 2), so the export notes where these bytes are (`unsigned` of a
graph in `model.json`), and nothing but the notes is needed to read the one form as the other.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sam_edge.runtimes.processor import features

SIGN, TYPE = 0x80, 0x01
"""What differs in a byte of data and in one that names its type."""
PROBE = Path(__file__).with_name("probe.onnx")
"""One product of uint8 and int8, written by `python -m sam_edge.export.unsigned`."""


@cache
def clips_products() -> bool:
    """Whether sums of products of uint8 and int8 are clipped on this machine's CPU: ONNX Runtime is asked, where it is
    here, and the processor's features where OpenVINO is alone."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        return "AVX2" in features() and "VNNI" not in features()
    session = ort.InferenceSession(PROBE, providers=["CPUExecutionProvider"])
    # the other operand is 127 throughout
    left = np.full((16, 64), 255, np.uint8)
    return bool((session.run(None, {"left": left})[0] != 255 * 127 * left.shape[1]).any())


def without_sign(file: Path, places: Mapping[str, Sequence[Any]]) -> bytes:
    """The bytes of an ONNX file with its int8 grids as uint8 grids of the same values, by the notes of its export."""
    content = np.fromfile(file, np.uint8)
    for start, length in places["data"]:
        content[start : start + length] ^= SIGN
    content[np.array(places["types"], np.int64)] ^= TYPE
    return content.tobytes()
