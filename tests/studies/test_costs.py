"""sam_edge.studies.costs: layers add up to what the whole is counted as."""

import pytest

from sam_edge.models.cost import cost
from sam_edge.segment.known import KNOWN
from sam_edge.studies.costs import layer_costs, main


@pytest.mark.slow
def test_layers_add_up_to_the_encoder() -> None:
    config = KNOWN["vit_t"].config
    whole, counted = cost(config), layer_costs(config)
    encoder = counted[0]
    assert encoder.name == "encoder"
    assert encoder.parameters == whole.encoder_parameters
    assert (encoder.macs, encoder.macs_with_attention) == (whole.encoder_macs, whole.encoder_macs_with_attention)
    names = {layer.name for layer in counted}
    top = [layer for layer in counted[1:] if layer.name.rpartition(".")[0] not in names]
    assert sum(layer.macs for layer in top) == encoder.macs
    assert sum(layer.macs_with_attention for layer in top) == encoder.macs_with_attention


def test_a_block_is_counted_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """The first block: 4096 tokens of 160 channels in windows of 64, qkv and projection, and a hidden layer of 640."""
    blocks = {layer.name: layer for layer in main(["nano-vit"])}
    block = blocks["blocks.0"]
    assert block.macs == 4096 * 160 * (4 * 160 + 2 * 640)
    products = 2 * 4096 * 64 * 160
    assert block.macs_with_attention >= block.macs + products
    assert block.output_bytes == 4 * 4096 * 160
    assert "blocks.0" in capsys.readouterr().out
