"""segment-anything's `SamPredictor` on any runtime: the same methods, arguments and results."""

import sys
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from sam_edge.errors import PromptError
from sam_edge.segment.frame import Frame, normalise, require_picture
from sam_edge.segment.masks import MASK_THRESHOLD, mask_of
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Embeddings, Runtime, as_runtime
from sam_edge.segment.scaling import Scaling
from sam_edge.segment.upscaled import embed


class SamPredictor:
    """Embeds an image once, then answers prompts about it."""

    def __init__(self, sam_model: Runtime | Any) -> None:
        """`sam_model` is a runtime, or a torch model of sam-edge's."""
        self.model = as_runtime(sam_model)
        self.mask_threshold = MASK_THRESHOLD
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the current image."""
        self.is_image_set = False
        self.features: Any = None
        self.frame: Frame | None = None
        self._scaling: Scaling | None = None

    def set_image(
        self, image: np.ndarray, image_format: str = "RGB", original_size: tuple[int, int] | None = None
    ) -> None:
        """Embed an H x W x 3 uint8 image, RGB or BGR.

        `original_size` is the height and width that prompts and masks are about, where the image was reduced.

        Raises:
            PromptError: another format. DataError: another shape or type.
        """
        if image_format not in ("RGB", "BGR"):
            raise PromptError(f"image_format must be RGB or BGR, got {image_format}.")
        rgb = image if image_format == "RGB" else image[..., ::-1]
        require_picture(rgb)
        height, width = original_size or rgb.shape[:2]
        frame = Frame.of(height, width, self.model.config.image_size)
        self.reset_image()
        self._keep(embed(self.model, rgb, original_size), frame)

    def set_torch_image(self, transformed_image: Any, original_image_size: tuple[int, ...]) -> None:
        """Embed a 1 x 3 x H x W image in 0..255, tensor or array, whose long side is already the model's image size."""
        size = self.model.config.image_size
        pixels = _array(transformed_image)
        if pixels.ndim != 4 or max(pixels.shape[2:]) != size:
            raise PromptError(f"set_torch_image needs 1 x 3 x H x W with long side {size}, got {tuple(pixels.shape)}.")
        height, width = original_image_size
        self.reset_image()
        frame = Frame((height, width), (pixels.shape[2], pixels.shape[3]), size)
        self._keep(self.model.encode(normalise(pixels, self.model.config)), frame)

    def _keep(self, embeddings: Embeddings, frame: Frame) -> None:
        self.features, self.frame = embeddings, frame
        self._scaling = Scaling.of(frame, self.model.config.mask_size)
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
            points = frame.to_input(np.asarray(point_coords, np.float32))[None]
            labels = np.asarray(point_labels)[None]
        if box is not None:
            if np.size(box) != 4:
                raise PromptError(f"box must be x0, y0, x1, y1, got {np.shape(box)}.")
            boxes = frame.to_input(np.asarray(box, np.float32).reshape(-1, 2, 2)).reshape(-1, 4)
        if mask_input is not None:
            side = self.model.config.mask_size
            if np.shape(mask_input) != (1, side, side):
                raise PromptError(f"mask_input must be 1 x {side} x {side}, got {np.shape(mask_input)}.")
            masks = np.asarray(mask_input, np.float32)[None]
        low_res, iou = self.predict_low_res(points, labels, boxes, masks, multimask_output)
        found = self.logits(low_res) if return_logits else self.masks(low_res)
        return found[0], iou[0], low_res[0]

    def predict_torch(
        self,
        point_coords: Any,
        point_labels: Any,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Any, Any, Any]:
        """N prompt sets of torch's tensors at once, in the model's frame; the answers are tensors where they are.

        Points are N x P x 2, labels N x P, boxes N x 4, masks N x 1 x h x w. Returns masks N x C x H x W, predicted IoU
        N x C, and low-resolution logits N x C x h x w.
        """
        given = [part for part in (point_coords, boxes, mask_input) if part is not None]
        if not given:
            raise PromptError("a prompt needs at least one point, box or mask.")
        points, labels, corners, masks = (
            None if part is None else _array(part) for part in (point_coords, point_labels, boxes, mask_input)
        )
        low_res, iou = self.predict_low_res(points, labels, corners, masks, multimask_output)
        found = self.logits(low_res) if return_logits else self.masks(low_res)
        # whoever has tensors has torch, which is not imported for anybody else
        torch = sys.modules["torch"]
        first, second, third = (torch.from_numpy(part).to(given[0].device) for part in (found, iou, low_res))
        return first, second, third

    def predict_low_res(
        self,
        point_coords: Float[np.ndarray, "n p 2"] | None,
        point_labels: Int[np.ndarray, "n p"] | None,
        boxes: Float[np.ndarray, "n 4"] | None = None,
        mask_input: Float[np.ndarray, "n 1 h w"] | None = None,
        multimask_output: bool = True,
    ) -> tuple[Float32[np.ndarray, "n c h w"], Float32[np.ndarray, "n c"]]:
        """Low-resolution logits and predicted IoU of N prompt sets in the model's frame: the three masks of an
        ambiguous prompt, or the single one."""
        self._require_frame()
        points, corners, masks = (
            None if part is None else np.asarray(part, np.float32)[None] for part in (point_coords, boxes, mask_input)
        )
        prompts = Prompts.build(points, None if point_labels is None else point_labels[None], corners, masks)
        logits, iou = self.model.decode(self.features, prompts)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return logits[0, :, chosen], iou[0, :, chosen]

    def masks(self, low_res: Float32[np.ndarray, "n c h w"]) -> Bool[np.ndarray, "n c H W"]:
        """Masks at the picture's size."""
        return self._each(low_res, lambda scaling, logits: mask_of(logits, scaling), np.bool_)

    def logits(self, low_res: Float32[np.ndarray, "n c h w"]) -> Float32[np.ndarray, "n c H W"]:
        """Logits at the picture's size."""
        return self._each(low_res, lambda scaling, logits: scaling.full(logits), np.float32)

    def _each(self, low_res: np.ndarray, function: Any, dtype: type) -> np.ndarray:
        scaling = self._scaling
        assert scaling is not None
        found = np.empty((*low_res.shape[:2], *scaling.size), dtype)
        for index in np.ndindex(low_res.shape[:2]):
            found[index] = function(scaling, low_res[index])
        return found

    def get_image_embedding(self) -> Any:
        """The current image's embedding: 1 x C x g x g for torch, opaque for other runtimes."""
        self._require_frame()
        return self.features

    @property
    def device(self) -> Any:
        """Where the model is: torch's device for torch, a name for other runtimes."""
        return getattr(self.model, "device", "cpu")

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


def _array(value: Any) -> np.ndarray:
    """An array, or what a tensor holds, in host memory."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
