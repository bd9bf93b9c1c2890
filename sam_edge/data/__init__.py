"""Where images and masks come from: photo folders, SA-1B (folders or tars), COCO, and synthetic scenes.

`open_labelled` and `open_images` take whatever a user names; everything yields HWC uint8 RGB arrays.
"""

from sam_edge.data.coco import CocoInstances
from sam_edge.data.dataset import Dataset
from sam_edge.data.folder import ImageFolder
from sam_edge.data.image import IMAGE_SUFFIXES, read_image
from sam_edge.data.open import open_images, open_labelled, open_some
from sam_edge.data.rle import decode_mask, encode_mask
from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage
from sam_edge.data.shards import TarShards
from sam_edge.data.split import Split, is_val, select

__all__ = [
    "IMAGE_SUFFIXES",
    "Annotation",
    "CocoInstances",
    "Dataset",
    "ImageFolder",
    "LabelledDataset",
    "LabelledImage",
    "Sa1bFolder",
    "Split",
    "TarShards",
    "decode_mask",
    "encode_mask",
    "is_val",
    "open_images",
    "open_labelled",
    "open_some",
    "read_image",
    "select",
]
