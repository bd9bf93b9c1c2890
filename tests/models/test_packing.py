"""sam_edge.models.packing: narrow integers without gaps, on disk and back."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.packing import pack, unpack
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 2), (64, 9)], ids=str)
def test_every_integer_comes_back(bits, shape):
    top = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(bits)
    integers = torch.randint(-top, top, shape, generator=generator).to(torch.int8)
    packed = pack(integers, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-integers.numel() * bits // 8)
    assert torch.equal(unpack(packed, bits, integers.shape), integers)


def test_six_bits_lie_four_in_three_bytes_and_four_bits_two_in_one():
    assert pack(torch.tensor([1, -1, 2, -32], dtype=torch.int8), 6).tolist() == [0b11000001, 0b00101111, 0b10000000]
    assert pack(torch.tensor([1, -8], dtype=torch.int8), 4).tolist() == [0x81]


@pytest.mark.parametrize("bits", [6, 4])
def test_a_packed_checkpoint_comes_back_and_is_as_small_as_its_bits(tiny_slim, photo, tmp_path, bits):
    quantize_model(tiny_slim, [photo], QuantizeOptions(weights=bits, metric="minmax", prompts_per_image=1))
    folder = save_checkpoint(tiny_slim, tmp_path / "packed", half=True)
    loaded, stored = load_checkpoint(folder), load_file(folder / "model.safetensors")
    state = loaded.state_dict()
    for name, value in tiny_slim.state_dict().items():
        assert torch.equal(state[name], value), name
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    assert stored[name].numel() == -(-state[name].numel() * bits // 8)


def test_a_packed_weight_of_another_size_is_refused(tiny_slim, photo, tmp_path):
    quantize_model(tiny_slim, [photo], QuantizeOptions(weights=6, metric="minmax", prompts_per_image=1))
    folder = save_checkpoint(tiny_slim, tmp_path / "packed", half=True)
    stored = load_file(folder / "model.safetensors")
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    stored[name] = stored[name][:-1].clone()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lin1\.weight does not hold 1280 packed 6-bit integers"):
        load_checkpoint(folder)
