"""Examples of every command, which its --help and the documentation show; a test parses each."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "demo --out first-masks"),
    "sample": ("sample", "sample --out cup.jpg"),
    "segment": (
        "segment nano photo.jpg --box 165,15,420,290 --out cup",
        "segment nano photo.jpg --point 300,200 --point 100,50,0 --out cup --show",
        "segment nano photo.jpg --everything --out all",
        "segment slim-onnx photos/ --everything --format labelme --out labels",
    ),
    "serve": ("serve site",),
    "models": ("models", "models --json"),
    "runtimes": ("runtimes",),
    "doctor": ("doctor", "doctor --json"),
    "compress": (
        "compress vit_b --images photos/ --ratio 0.77 --out slim",
        "compress vit_b --images photos/ --method tinysam --student vit_t --pretrained --out tiny",
    ),
    "embed": (
        "embed vit_h --images photos/ --out teacher",
        "compress vit_h --images photos/ --method tinysam --student vit_t --embeddings teacher --out tiny",
    ),
    "train": (
        "train slim --data labelled/ --steps 2000 --out tuned",
        "train timm:repvit_m1 --data labelled/ --data synthetic:1000=0.2 --freeze 'image_encoder.*' --out mine",
    ),
    "calibrate": ("calibrate slim --images photos/ --out slim-tuned",),
    "quantize": (
        "quantize slim --images photos/ --out slim-int8",
        "quantize slim --images photos/ --max-drop 0.01 --gate-data labelled/ --out slim-int8",
        "quantize slim --images photos/ --weights 6 --activations 6 --out slim-int6",
    ),
    "export-onnx": (
        "export-onnx slim --out slim-onnx",
        "export-onnx slim-int8 --precision int8 --images photos/ --out slim-onnx",
        "export-onnx slim --layout anylabeling --out for-anylabeling",
    ),
    "export-trt": (
        "export-trt slim --target sm89 --out slim-engine",
        "export-trt slim --precision fp16 --bundle for-jetson",
    ),
    "export-web": ("export-web nano --out site", "export-web nano slim-onnx --out site"),
    "convert": (
        "convert slim --layout segment-anything --out slim.pth",
        "convert encoder.pth --base vit_b --layout safetensors --out whole.safetensors",
    ),
    "run": ("run --out demo", "run recipe.toml --images photos/ --data labelled/ --out lineage"),
    "eval": (
        "eval nano --data labelled/ --prompt point --multimask",
        "eval nano --data labelled/ --clicks 5 --limit 100",
        "eval nano --data instances_val2017.json --ap --detections boxes.json --results masks.jsonl",
    ),
    "bench": (
        "bench nano",
        "bench slim slim-int8 --runtime onnxruntime --runtime openvino --image photo.jpg --out timings",
        "bench slim --everything --data labelled/",
    ),
    "card": ("card slim --data labelled/ --notes notes.md --out slim-card",),
}
