"""How each tool is given its files, for the README.md that lies beside them."""

from string import Template

OPENING = {
    "sam": """Ask the decoder as segment-anything's `notebooks/onnx_model_example.ipynb` does; the encoder takes its
`ResizeLongestSide`d, normalised and padded pixels.""",
    "anylabeling": """In AnyLabeling or X-AnyLabeling choose "...Load Custom Model" among the models, and `config.yaml`.

With samexporter, where `prompt.json` is `[{"type": "point", "data": [300, 200], "label": 1}]`:

```sh
python -m samexporter.inference --encoder_model $encoder --decoder_model $decoder \\
    --image photo.jpg --prompt prompt.json --output masks.png
```""",
    "osam": """In Python, run in this folder:

```python
import os, shutil
import osam
from osam._models.sam._models import Sam
from osam.types._blob import Blob


class Ours(Sam):
    name = "sam:latest"
    _blobs = {
        "encoder": Blob("$encoder", "sha256:$encoder_sha256"),
        "decoder": Blob("$decoder", "sha256:$decoder_sha256"),
    }


for blob in Ours._blobs.values():
    os.makedirs(os.path.dirname(blob.path), exist_ok=True)
    shutil.copy(blob.url, blob.path)
osam.apis.registered_model_types.insert(0, Ours)
```

So it takes the place of osam's `sam:latest`, which labelme calls "Sam (accuracy)". In the same Python,
`from labelme.__main__ import main; main()` starts labelme.""",
    "cvat": """`$decoder` takes the place of `/assets/decoder.onnx` in CVAT's web server; `$encoder` answers in the
serverless function `pth-facebookresearch-sam-vit-h` (`serverless/pytorch/facebookresearch/sam`): normalised and padded
pixels in, the embedding's bytes out.""",
    "darktable": """Copy this folder into `~/.local/share/darktable/models/` (`%APPDATA%\\darktable\\models\\` on
Windows), where darktable finds its `config.json`.""",
    "cpp": """```sh
sam_cpp_test -pre_model=$encoder -sam_model=$decoder -image=photo.jpg
```""",
    "nanosam": """On the device, build the engines that NanoSAM's `Predictor` opens:

```sh
trtexec --onnx=$encoder --saveEngine=image_encoder.engine --fp16
trtexec --onnx=$decoder --saveEngine=mask_decoder.engine --minShapes=point_coords:1x1x2,point_labels:1x1 \\
    --optShapes=point_coords:1x1x2,point_labels:1x1 --maxShapes=point_coords:1x10x2,point_labels:1x10
```""",
    "transformers": """In transformers.js, with this folder beneath `env.localModelPath`:

```js
const model = await SamModel.from_pretrained("$folder", { dtype: "$dtype" });
const processor = await AutoProcessor.from_pretrained("$folder");
```

In Python with optimum, which has no class for SAM but one for any graph:
`ORTModelForCustomTasks.from_pretrained(FOLDER, subfolder="onnx", file_name="$encoder_name")`, the decoder in the
same way, and transformers' `SamProcessor`.""",
}
"""By layout, in Markdown."""
DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}
"""What transformers.js calls precisions."""


def opening(layout: str, name: str, precision: str, graphs: dict[str, dict[str, str]]) -> str:
    """Markdown that says how a tool is given the graphs of a model of this name."""
    encoder, decoder = graphs["encoder"], graphs["decoder"]
    return Template(OPENING[layout]).substitute(
        folder=name,
        dtype=DTYPES[precision],
        encoder=encoder["file"],
        decoder=decoder["file"],
        encoder_name=encoder["file"].rpartition("/")[2],
        encoder_sha256=encoder["sha256"],
        decoder_sha256=decoder["sha256"],
    )
