"""Students: whose weights they start from, and how their channels and sizes become the teacher's."""

import pytest
import torch

from sam_edge.compress.student import StudentOptions, build_student, student_config
from sam_edge.errors import CompressionError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.resize import resized
from sam_edge.segment.known import KNOWN, KnownModel


@pytest.fixture
def architecture(monkeypatch, tiny_vit_config) -> str:
    """A small TinyViT known by name, of another width and image size than the tests' teacher."""
    config = tiny_vit_config.replace(image_size=128, decoder=tiny_vit_config.decoder.__class__(dim=16, mlp=20))
    monkeypatch.setitem(KNOWN, "small-t", KnownModel("small-t", config, "", "none", "", "MIT"))
    return "small-t"


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_known_name_is_an_architecture_with_the_teachers_decoder(tiny_sam, architecture):
    student = build_student(tiny_sam, StudentOptions(architecture), seed=1)
    assert student.config.image_size == tiny_sam.config.image_size, "its own 128 is more than the teacher's"
    assert student.config.decoder == tiny_sam.config.decoder
    assert same(student.prompt_encoder, tiny_sam.prompt_encoder)
    assert same(student.mask_decoder, tiny_sam.mask_decoder)
    assert same(student.image_encoder.neck[3], tiny_sam.image_encoder.neck[3])
    assert student.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 32, 4, 4)
    again, other = (build_student(tiny_sam, StudentOptions(architecture), seed) for seed in (1, 2))
    assert same(student, again)
    assert not same(student.image_encoder, other.image_encoder)


@pytest.mark.parametrize(
    ("decoder", "prompts_trained", "decoder_trained"),
    [("trained", False, True), ("frozen", False, False), ("scratch", True, True)],
)
def test_what_is_trained(tiny_sam, architecture, decoder, prompts_trained, decoder_trained):
    student = build_student(tiny_sam, StudentOptions(architecture, decoder=decoder), seed=1)
    assert all(p.requires_grad for p in student.image_encoder.parameters())
    assert all(p.requires_grad == prompts_trained for p in student.prompt_encoder.parameters())
    assert all(p.requires_grad == decoder_trained for p in student.mask_decoder.parameters())
    assert same(student.mask_decoder, tiny_sam.mask_decoder) == (decoder != "scratch")


def test_a_checkpoint_brings_its_own_encoder(tiny_sam, tiny_slim, tmp_path):
    folder = save_checkpoint(tiny_slim, tmp_path / "slim")
    student = build_student(tiny_sam, StudentOptions(str(folder)), seed=0)
    assert same(student.image_encoder, tiny_slim.image_encoder)
    assert same(student.mask_decoder, tiny_sam.mask_decoder)
    half = build_student(tiny_sam, StudentOptions(str(folder), image_size=32), seed=0)
    assert half.config.grid == 4
    assert same(half.image_encoder, resized(tiny_slim, 32).image_encoder)
    assert not half.config.lineage
    anew = build_student(tiny_sam, StudentOptions(f"random:{folder}"), seed=0)
    assert anew.config == student.config
    encoders = zip(anew.image_encoder.parameters(), student.image_encoder.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in encoders if a.ndim > 1)
    assert same(anew.mask_decoder, tiny_sam.mask_decoder)


@pytest.mark.parametrize("projection", ["folded", "kept"])
def test_other_channels_are_projected_and_the_model_survives_a_checkpoint(
    tiny_sam, tiny_vit_config, make_sam, tmp_path, projection
):
    decoder = tiny_vit_config.decoder.__class__(dim=48, mlp=20)
    wide = make_sam(tiny_vit_config.replace(decoder=decoder))
    folder = save_checkpoint(wide, tmp_path / "wide")
    student = build_student(tiny_sam, StudentOptions(str(folder), projection=projection), seed=3)
    assert len(student.image_encoder.neck) == (5 if projection == "kept" else 4)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, theirs = student.encode(pixels), wide.encode(pixels)
        before_last = wide.image_encoder.neck[:3](wide.image_encoder.stages(wide.image_encoder.patch_embed(pixels)))
    assert got.shape == (1, 32, 4, 4)
    # orthonormal rows: what is projected can be computed from the student's weights alone
    if projection == "kept":
        matrix = student.image_encoder.neck[4].weight[..., 0, 0]
        expected = torch.einsum("oc,bcij->boij", matrix, theirs)
    else:
        stored = wide.image_encoder.neck[2].weight
        matrix = student.image_encoder.neck[2].weight.flatten(1) @ torch.linalg.pinv(stored.flatten(1))
        expected = tiny_sam.image_encoder.neck[3](torch.einsum("oc,bcij->boij", matrix, before_last))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    loaded = load_checkpoint(save_checkpoint(student, tmp_path / "student"))
    torch.testing.assert_close(loaded.encode(pixels), got, atol=1e-5, rtol=1e-5)
    with pytest.raises(CompressionError, match="projected already"):
        build_student(wide, StudentOptions(str(tmp_path / "student")), seed=0)


def test_a_student_larger_than_its_teacher_is_refused(tiny_sam, architecture):
    with pytest.raises(CompressionError, match="at most the teacher's 64, got 128"):
        build_student(tiny_sam, StudentOptions(architecture, image_size=128), seed=0)


def test_a_known_architecture_becomes_as_large_as_its_teacher():
    vit_t = student_config(KNOWN["vit_t"].config, KNOWN["nano"].config, StudentOptions("vit_t"))
    assert (vit_t.image_size, vit_t.grid, vit_t.decoder.dim, vit_t.neck) == (512, 32, 128, 0)
