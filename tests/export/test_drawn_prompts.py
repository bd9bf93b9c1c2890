"""Prompts that are drawn, in exported graphs: the decoder's draws all, everything mode's clicks alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sam_edge.models.prompts import on_device
from sam_edge.segment.prompts import Prompts


@pytest.mark.parametrize(("clicks", "precision", "tolerance"), [(0, "fp32", 1e-4), (1, "fp32", 1e-4), (1, "int8", 0.1)])
def test_graphs_answer_drawn_boxes_points_and_both_as_torch_does(export, tiny_config, clicks, precision, tolerance):
    drawing = tiny_config.replace(decoder=replace(tiny_config.decoder, draws_boxes=True, draws_points=bool(clicks)))
    exported = export(drawing, precision)
    boxes = Prompts.build(boxes=np.array([[[5.0, 9.0, 41.0, 30.0], [20.0, 8.5, 26.0, 14.0]]], np.float32))
    clicks = np.array([[[[12.0, 30.0]], [[50.0, 9.0]]]], np.float32)
    points = Prompts.build(clicks, np.ones((1, 2, 1), np.int64))
    both = Prompts(np.concat([boxes.coords, points.coords], 1), np.concat([boxes.labels, points.labels], 1))
    embeddings = exported.embeddings()
    for prompts in (boxes, points, both):
        with torch.no_grad():
            given = torch.from_numpy(embeddings), on_device(prompts, "cpu")
            wanted, wanted_iou = (part.numpy() for part in exported.model.decoder.decode(*given))
        sets = np.arange(prompts.labels.shape[1])
        logits, iou = exported.runtime.decode(embeddings, prompts)
        prediction = exported.runtime.predict(exported.runtime.prepare(embeddings), prompts)
        split = exported.runtime.upscale(prediction, sets, sets)
        np.testing.assert_allclose(logits, wanted, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(iou, wanted_iou, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(split, wanted[0, sets, sets], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(prediction.iou, wanted_iou[0], rtol=tolerance, atol=tolerance)
