"""Packs of npm's onnxruntime-web what the page needs: `python -m sam_edge.web.pack node_modules/onnxruntime-web`.

Two builds: for processors, and one with WebGPU for browsers that have it and may suspend WebAssembly (JSPI). The
package's third, for WebGPU without JSPI, is as large as both. Compressed together they take 4 MB: little enough to lie
in the checkout, so that neither an installation nor a test needs npm or a network.
"""

import json
import lzma
import sys
import tarfile
from io import BytesIO
from pathlib import Path

from sam_edge.files import atomic_file
from sam_edge.web.site import RUNTIME

FILES = (
    "ort-wasm-simd-threaded.wasm",
    "ort-wasm-simd-threaded.jspi.wasm",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.jspi.mjs",
    "ort.wasm.min.mjs",
    "ort.jspi.min.mjs",
)
"""Alike ones side by side: what they share is stored once."""


def packed(package: Path) -> bytes:
    """The archive of an unpacked npm package; the same bytes from the same package."""
    version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    contents = {name: (package / "dist" / name).read_bytes() for name in FILES}
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in {**contents, "VERSION": f"{version}\n".encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, BytesIO(content))
    return lzma.compress(archive.getvalue(), preset=9)


if __name__ == "__main__":
    with atomic_file(RUNTIME) as part:
        part.write_bytes(packed(Path(sys.argv[1])))
