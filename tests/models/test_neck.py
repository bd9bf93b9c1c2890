"""sam_edge.models.neck: SAM's own neck, and one for encoders that were trained for another decoder."""

import pytest
import torch

from sam_edge.errors import ModelError
from sam_edge.models.neck import build_neck
from sam_edge.models.sam import EdgeSam


def test_by_default_it_is_segment_anythings(tiny_config):
    theirs, ours = EdgeSam(tiny_config).image_encoder.neck, build_neck(32, tiny_config)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("arch", ["vit", "tiny_vit"])
def test_another_width_ends_in_the_decoders(tiny_config, tiny_vit_config, arch, projection):
    config = (tiny_config if arch == "vit" else tiny_vit_config).replace(neck=48, projection=projection)
    model = EdgeSam(config)
    widths = [layer.weight.shape[0] for layer in model.image_encoder.neck]
    assert widths == ([48, 48, 48, 48, 32] if projection else [48, 48, 32, 32])
    assert model.encode(torch.zeros(1, 3, 64, 64)).shape[1] == 32


def test_a_projection_from_nowhere_is_refused(tiny_config):
    with pytest.raises(ModelError, match="set neck"):
        tiny_config.replace(projection=True)
