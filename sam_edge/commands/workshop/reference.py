"""segment-anything's own predictor as a contender of `bench`: the same weights, its code, in torch."""

from collections.abc import Mapping

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide

from sam_edge.bench.latency import Call
from sam_edge.commands.common import Picture
from sam_edge.models.registry import load_model

NAME = "segment-anything"


def reference_calls(spec: str, image: Picture) -> Mapping[str, Call]:
    """What `bench.latency.MEASUREMENTS` means by each of its names, by segment-anything's predictor on the CPU.

    `decode_64_points` is 64 prompt sets of one point in one call, as its generator asks.
    """
    # its own copy: opened as a runtime, a model's attention is rewritten
    model = load_model(spec)
    predictor = SamPredictor(model)
    resize = ResizeLongestSide(model.image_encoder.img_size)
    height, width = image.shape[:2]

    def pre_process() -> torch.Tensor:
        resized = torch.as_tensor(resize.apply_image(image))
        return model.preprocess(resized.permute(2, 0, 1).contiguous()[None])

    pixels = pre_process()
    predictor.set_image(image)
    ticks = (np.arange(8) + 0.5) / 8
    grid = np.stack(np.meshgrid(ticks * width, ticks * height), -1).reshape(-1, 1, 2)
    points = torch.as_tensor(resize.apply_coords(grid, (height, width)), dtype=torch.float)
    centre = torch.as_tensor(resize.apply_coords(np.array([[[width / 2, height / 2]]]), (height, width)))
    middle = np.array([width, height, 3 * width, 3 * height]) / 4
    box = torch.as_tensor(resize.apply_boxes(middle[None], (height, width)), dtype=torch.float)

    def decode(points: torch.Tensor | None, boxes: torch.Tensor | None) -> torch.Tensor:
        asked = None if points is None else (points.float(), torch.ones(points.shape[:2], dtype=torch.int))
        sparse, dense = model.prompt_encoder(points=asked, boxes=boxes, masks=None)
        low_res, _ = model.mask_decoder(
            image_embeddings=predictor.features,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return low_res

    with torch.no_grad():
        single = decode(centre, None)[:, :1]
    whole = SamPredictor(model)

    def end_to_end() -> object:
        whole.set_image(image)
        return whole.predict(np.array([[width / 2, height / 2]]), np.array([1]), multimask_output=False)

    calls: dict[str, Call] = {
        "pre_process": pre_process,
        "encode": lambda: model.image_encoder(pixels),
        "decode_point": lambda: decode(centre, None),
        "decode_box": lambda: decode(None, box),
        "decode_64_points": lambda: decode(points, None),
        "post_process": lambda: (
            model.postprocess_masks(single, predictor.input_size, predictor.original_size) > model.mask_threshold
        ),
        "end_to_end": end_to_end,
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}
