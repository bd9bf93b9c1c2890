"""The shapes and types in signatures hold: one walk through every part with all of them checked at run time."""

import subprocess
import sys
import textwrap

WALK = """
from jaxtyping import install_import_hook

with install_import_hook("sam_edge", "beartype.beartype"):
    import numpy as np
    import torch

    from sam_edge.compress.distil import DistilOptions
    from sam_edge.compress.one_step import OneStepOptions, compress_one_step
    from sam_edge.data import SyntheticScenes, open_images
    from sam_edge.evaluate.miou import evaluate_miou
    from sam_edge.models.config import DecoderConfig, ModelConfig, uniform_blocks
    from sam_edge.models.resize import resized
    from sam_edge.models.sam import EdgeSam, initialise
    from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
    from sam_edge.segment.everything import EverythingGenerator
    from sam_edge.segment.overlay import overlay
    from sam_edge.segment.predictor import SamPredictor
    from sam_edge.segment.runtime import TorchRuntime
    from sam_edge.training.interactive import InteractiveOptions
    from sam_edge.training.loop import LoopOptions
    from sam_edge.training.stream import Source
    from sam_edge.training.train import TrainOptions, train

torch.set_num_threads(1)
blocks = uniform_blocks(2, 32, 2, (1,), window=3, mlp=40)
config = ModelConfig("slim_vit", 64, blocks, patch_size=8, decoder=DecoderConfig(32, mlp=48, mask_channels=8))
model = EdgeSam(config)
initialise(model, 0)
options = TrainOptions(
    LoopOptions(steps=2, ema_decay=0.9), batch_size=2, workers=0, prompting=InteractiveOptions(interactive_share=1.0)
)
train(model, [Source(SyntheticScenes(8))], options)
model = resized(resized(model, 128), 64)
compress_one_step(model, open_images("synthetic:8"), OneStepOptions(distil=DistilOptions(epochs=1, workers=0)))
scene = SyntheticScenes(1)[0]
quantize_model(model, [scene.image], QuantizeOptions())
runtime = TorchRuntime(model)
predictor = SamPredictor(runtime)
predictor.set_image(scene.image)
masks, _, low_res = predictor.predict(
    point_coords=np.array([[5.0, 9.0]]), point_labels=np.array([1]), box=np.array([1.0, 2.0, 90.0, 80.0])
)
predictor.predict(point_coords=np.array([[5.0, 9.0]]), point_labels=np.array([0]), mask_input=low_res[:1])
overlay(scene.image, list(masks), points=[(5.0, 9.0, 1)], boxes=[(1.0, 2.0, 90.0, 80.0)])
EverythingGenerator(runtime, points_per_side=2, pred_iou_thresh=-9.0, stability_score_thresh=0.0).generate(scene.image)
for prompt in ("point", "box"):
    evaluate_miou(runtime, SyntheticScenes(2), prompt=prompt, multimask=True)
"""


def test_every_annotation_holds_on_a_walk_through_the_parts():
    script = textwrap.dedent(WALK)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
