"""The shapes and types in signatures hold: one walk through every part with all of them checked at run time."""

import subprocess
import sys
import textwrap

import pytest

WALK = """
from jaxtyping import install_import_hook

with install_import_hook("sam_edge", "beartype.beartype"):
    import tempfile
    from pathlib import Path

    import numpy as np
    import torch

    from sam_edge.compress.distil import DistilOptions
    from sam_edge.compress.embeddings import EmbedOptions, embed_pictures
    from sam_edge.compress.hard_prompts import HardPromptOptions
    from sam_edge.compress.importance import ImportanceOptions
    from sam_edge.compress.labels import LabelledLoss
    from sam_edge.compress.slimming import Slimming, SlimOptions
    from sam_edge.compress.stored import StoredEmbeddings
    from sam_edge.compress.student import StudentOptions
    from sam_edge.compress.tinysam import TinySamOptions, distil_full_stage
    from sam_edge.compress.widths import PruneOptions
    from sam_edge.data import open_images
    from sam_edge.scenes.synthetic import SyntheticScenes
    from sam_edge.evaluate.everything import evaluate_strategies
    from sam_edge.evaluate.miou import evaluate_miou
    from sam_edge.segment.config import DecoderConfig, ModelConfig, Thresholds, uniform_blocks
    from sam_edge.models.resize import resized
    from sam_edge.models.sam import EdgeSam, initialise
    from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
    from sam_edge.segment.calibrate import CalibrateOptions, calibrate
    from sam_edge.segment.everything import EverythingGenerator
    from sam_edge.segment.overlay import overlay
    from sam_edge.segment.predictor import SamPredictor
    from sam_edge.models.torch_runtime import TorchRuntime
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
slim = SlimOptions("alternate", PruneOptions(0.4), ImportanceOptions(2), DistilOptions(epochs=2, workers=0))
model = Slimming(model, open_images("synthetic:8"), slim).run()
slim = SlimOptions("one-step", PruneOptions(0.3, "taylor"), ImportanceOptions(2), DistilOptions(epochs=0))
slimming = Slimming(model, open_images("synthetic:8"), slim, label_loss=LabelledLoss(SyntheticScenes(8)))
model = slimming.run()
slimming.closeness()
prompting = HardPromptOptions(prompts=3, max_rounds=2)
tiny = TinySamOptions(StudentOptions("vit_t"), prompting=prompting, steps=1, batch_size=2, workers=0)
with tempfile.TemporaryDirectory() as scratch:
    embed_pictures(model, open_images("synthetic:4"), Path(scratch) / "store", EmbedOptions(mask_points=2))
    distil_full_stage(resized(model, 32), model, StoredEmbeddings(Path(scratch) / "store"), SyntheticScenes(4), tiny)
model.requires_grad_(True)
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
runtime.config = runtime.config.replace(thresholds=Thresholds(pred_iou=-9.0, stability=0.0))
calibrate(runtime, [scene.image], CalibrateOptions(4, covered=0.1))
lax = {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.0, "crop_n_layers": 1, "min_mask_region_area": 9}
EverythingGenerator(runtime, 4, **lax, strategy="hierarchical", tau=0.0, output_mode="coco_rle").generate(scene.image)
evaluate_strategies(runtime, SyntheticScenes(1), ("grid",), points_per_side=2)
for prompt in ("point", "box"):
    evaluate_miou(runtime, SyntheticScenes(2), prompt=prompt, multimask=True)
"""


def test_every_annotation_holds_on_a_walk_through_the_parts():
    pytest.importorskip("torch")
    script = textwrap.dedent(WALK)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
