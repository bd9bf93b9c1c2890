"""sam_edge.models.prompts: what a set of prompts is known to be."""

import pytest
import torch

from sam_edge.segment.prompts import ABSENT, BACKGROUND, BOX_END, BOX_START, FOREGROUND, NOT_A_POINT, Prompts


@pytest.mark.parametrize(
    ("labels", "alone"),
    [
        ([FOREGROUND, NOT_A_POINT], True),
        ([FOREGROUND, ABSENT], True),
        ([FOREGROUND, FOREGROUND], False),
        ([FOREGROUND, BACKGROUND], False),
        ([BACKGROUND, NOT_A_POINT], False),
        ([BOX_START, BOX_END], False),
        ([NOT_A_POINT, ABSENT], False),
    ],
)
def test_a_foreground_point_alone_is_ambiguous_and_nothing_else(labels, alone):
    prompts = Prompts(torch.zeros(1, 1, 2, 2), torch.tensor([[labels]]))
    assert prompts.single_points.item() is alone
    with_mask = Prompts(prompts.coords, prompts.labels, torch.zeros(1, 1, 1, 8, 8))
    assert not with_mask.single_points.any()
