"""segment-anything's `SamPredictor` on any runtime: the same methods, arguments and results."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sam_edge.errors import PromptError
from sam_edge.models.prompts import Prompts
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.frame import Frame, normalise, to_pixels
from sam_edge.segment.runtime import Runtime, as_runtime

MASK_THRESHOLD = 0.0


class SamPredictor:
    """Embeds an image once, then answers prompts about it."""

    def __init__(self, sam_model: EdgeSam | Runtime) -> None:
        self.model = as_runtime(sam_model)
        self.transform = ResizeLongestSide(self.model.config.image_size)
        self.mask_threshold = MASK_THRESHOLD
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the current image."""
        self.is_image_set = False
        self.features: Any = None
        self.frame: Frame | None = None

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Embed an H x W x 3 uint8 image, RGB or BGR.

        Raises:
            PromptError: another format. DataError: another shape or type.
        """
        if image_format not in ("RGB", "BGR"):
            raise PromptError(f"image_format must be RGB or BGR, got {image_format}.")
        pixels, frame = to_pixels(image if image_format == "RGB" else image[..., ::-1], self.model.config)
        self.reset_image()
        self._embed(pixels, frame)

    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Embed a 1 x 3 x H x W image in 0..255 whose long side is already the model's image size."""
        size = self.model.config.image_size
        if transformed_image.ndim != 4 or max(transformed_image.shape[2:]) != size:
            raise PromptError(
                f"set_torch_image needs 1 x 3 x H x W with long side {size}, got {tuple(transformed_image.shape)}."
            )
        height, width = original_image_size
        input_size = (transformed_image.shape[2], transformed_image.shape[3])
        self.reset_image()
        self._embed(normalise(transformed_image, self.model.config), Frame((height, width), input_size, size))

    def _embed(self, pixels: Float[Tensor, "1 3 s s"], frame: Frame) -> None:
        self.features = self.model.encode(pixels)
        self.frame = frame
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks C x H x W, predicted IoU C, and low-resolution logits C x h x w, for one set of prompts.

        Points are N x 2 pixels (x, y) of the picture with N labels (1 foreground, 0 background), the box is XYXY,
        `mask_input` is 1 x h x w logits of an earlier call.

        Raises:
            PromptError: no image set, nothing prompted, or shapes that do not match.
        """
        frame = self._require_frame()
        points = labels = boxes = masks = None
        if point_coords is not None:
            if point_labels is None or len(point_labels) != len(point_coords):
                raise PromptError("point_labels must hold one label for each of point_coords.")
            if np.ndim(point_coords) != 2 or np.shape(point_coords)[1] != 2:
                raise PromptError(f"point_coords must be N x 2, got {np.shape(point_coords)}.")
            points = frame.to_input(torch.as_tensor(np.asarray(point_coords), dtype=torch.float32))[None]
            labels = torch.as_tensor(np.asarray(point_labels))[None]
        if box is not None:
            if np.size(box) != 4:
                raise PromptError(f"box must be x0, y0, x1, y1, got {np.shape(box)}.")
            corners = torch.as_tensor(np.asarray(box), dtype=torch.float32).reshape(-1, 2, 2)
            boxes = frame.to_input(corners).reshape(-1, 4)
        if mask_input is not None:
            side = self.model.config.mask_size
            if np.shape(mask_input) != (1, side, side):
                raise PromptError(f"mask_input must be 1 x {side} x {side}, got {np.shape(mask_input)}.")
            masks = torch.as_tensor(np.asarray(mask_input), dtype=torch.float32)[None]
        result = self.predict_torch(points, labels, boxes, masks, multimask_output, return_logits)
        found, iou, low_res = (part[0].cpu().numpy() for part in result)
        return found, iou, low_res

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Bool[Tensor, "n c H W"] | Float[Tensor, "n c H W"], Float[Tensor, "n c"], Float[Tensor, "n c h w"]]:
        """N prompt sets at once, in the model's frame.

        Points are N x P x 2, labels N x P, boxes N x 4, masks N x 1 x h x w.
        """
        frame = self._require_frame()
        low_res, iou = self.predict_low_res(point_coords, point_labels, boxes, mask_input, multimask_output)
        logits = frame.to_original(low_res)
        return logits if return_logits else logits > self.mask_threshold, iou, low_res

    def predict_low_res(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c"]]:
        """Low-resolution logits and predicted IoU: the three masks of an ambiguous prompt, or the single one."""
        self._require_frame()
        prompts = Prompts.build(
            None if point_coords is None else point_coords.float()[None],
            None if point_labels is None else point_labels[None],
            None if boxes is None else boxes.float()[None],
            None if mask_input is None else mask_input.float()[None],
        )
        logits, iou = self.model.decode(self.features, prompts)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return logits[0, :, chosen], iou[0, :, chosen]

    def get_image_embedding(self) -> Any:
        """The current image's embedding: 1 x C x g x g for torch, opaque for other runtimes."""
        self._require_frame()
        return self.features

    @property
    def device(self) -> torch.device:
        """Where prompts are best put."""
        return getattr(self.model, "device", torch.device("cpu"))

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the current picture."""
        return self._require_frame().original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the current picture in the model's frame."""
        return self._require_frame().input_size

    def _require_frame(self) -> Frame:
        if self.frame is None:
            raise PromptError("an image must be set with set_image(...) before mask prediction.")
        return self.frame
