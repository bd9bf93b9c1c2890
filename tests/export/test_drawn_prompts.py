"""Prompts that are drawn, in exported graphs: the decoder's draws all, everything mode's clicks alone."""

from dataclasses import replace

import pytest
import torch

from sam_edge.segment.prompts import Prompts


@pytest.mark.parametrize(("clicks", "precision", "tolerance"), [(0, "fp32", 1e-4), (1, "fp32", 1e-4), (1, "int8", 0.1)])
def test_graphs_answer_drawn_boxes_points_and_both_as_torch_does(export, tiny_config, clicks, precision, tolerance):
    drawing = tiny_config.replace(decoder=replace(tiny_config.decoder, draws_boxes=True, draws_points=bool(clicks)))
    exported = export(drawing, precision)
    boxes = Prompts.build(boxes=torch.tensor([[[5.0, 9.0, 41.0, 30.0], [20.0, 8.5, 26.0, 14.0]]]))
    points = Prompts.build(torch.tensor([[[[12.0, 30.0]], [[50.0, 9.0]]]]), torch.ones(1, 2, 1, dtype=torch.long))
    both = Prompts(torch.cat([boxes.coords, points.coords], 1), torch.cat([boxes.labels, points.labels], 1))
    embeddings = torch.randn(
        1, drawing.decoder.dim, drawing.grid, drawing.grid, generator=torch.Generator().manual_seed(4)
    )
    for prompts in (boxes, points, both):
        with torch.no_grad():
            wanted, wanted_iou = exported.model.decoder.decode(embeddings, prompts)
        sets = prompts.labels.shape[1]
        logits, iou = exported.runtime.decode(embeddings.numpy(), prompts)
        prediction = exported.runtime.predict(exported.runtime.prepare(embeddings.numpy()), prompts)
        split = exported.runtime.upscale(prediction, torch.arange(sets), torch.arange(sets))
        torch.testing.assert_close(logits, wanted, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(iou, wanted_iou, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(split, wanted[0, range(sets), range(sets)], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(prediction.iou, wanted_iou[0], rtol=tolerance, atol=tolerance)
