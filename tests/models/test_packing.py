"""sam_edge.models.packing: narrow integers without gaps, on disk and back."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import holds_halves, load_checkpoint, save_checkpoint
from sam_edge.models.packing import from_bytes, pack, to_bytes, unpack
from sam_edge.models.registry import load_model
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


def test_a_table_in_bytes_is_within_half_a_step_and_stays_as_it_is():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, 9, 9, 6, generator=generator) * torch.tensor([3.0, 1.0, 1e-2, 1e-5, 0.0, 1e-9])
    integers, exponents = to_bytes(table)
    back = from_bytes(integers, exponents)
    step = (table.abs().flatten(0, 2).amax(0) / 63.5).clamp(min=2.0**-24)
    assert ((back - table).abs() <= step / 2).all()
    assert back.abs().amax(dim=(0, 1, 2))[:3].gt(0).all()
    assert torch.equal(back.half().float(), back)
    again = to_bytes(back)
    assert torch.equal(from_bytes(*again), back)


def test_positions_of_a_quantized_model_are_bytes_and_come_back(tiny_slim, photo, tmp_path):
    with torch.no_grad():
        tiny_slim.image_encoder.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax", prompts_per_image=1))
    folder = save_checkpoint(tiny_slim, tmp_path / "q", half=True)
    stored = load_file(folder / "model.safetensors")
    assert stored["image_encoder.pos_embed"].dtype == torch.int8
    loaded = load_checkpoint(folder)
    assert torch.equal(loaded.image_encoder.pos_embed, tiny_slim.image_encoder.pos_embed)
    assert loaded.image_encoder.pos_embed.abs().max() > 1
    assert holds_halves(loaded)
    with torch.no_grad():
        loaded.image_encoder.pos_embed += 0.25 * 2.0**-10
    assert not holds_halves(loaded)
    stored["image_encoder.pos_embed_exponents"] = stored["image_encoder.pos_embed_exponents"][1:].clone()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="as many channels"):
        load_checkpoint(folder)


@pytest.mark.parametrize(("bits", "share"), [(8, 0.28), (6, 0.22)])
def test_nano_in_integers_is_this_share_of_its_float_file(photo, tmp_path, bits, share):
    model = load_model("nano")
    parent = save_checkpoint(model, tmp_path / "float")
    quantize_model(model, [photo], QuantizeOptions(bits, bits, metric="minmax", prompts_per_image=1))
    folder = save_checkpoint(model, tmp_path / "q", half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, parent)]
    assert sizes[0] <= share * sizes[1]
