"""Full-stage distillation as a whole: what runs in a step, what is learnt, and what survives a kill."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sam_edge.compress.distil_views import DistilStream, StoredViews, stack_distil_views
from sam_edge.compress.embeddings import EmbedOptions, embed_pictures
from sam_edge.compress.full_stage import LossWeights
from sam_edge.compress.hard_prompts import HardPromptOptions, draw_rounds
from sam_edge.compress.stored import StoredEmbeddings
from sam_edge.compress.student import StudentOptions, build_student
from sam_edge.compress.tinysam import FullStage, TinySamOptions, distil_full_stage, distil_plan
from sam_edge.compress.watching import Watch
from sam_edge.data import is_val, open_images, open_labelled
from sam_edge.errors import CompressionError, DataError
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.segment.config import StageConfig, Thresholds
from sam_edge.training import loop
from sam_edge.training.prompting import seeded

SCENES = "synthetic:10:3"


@pytest.fixture
def teacher(tiny_sam):
    tiny_sam.config = tiny_sam.config.replace(thresholds=Thresholds(-9.0, -1.0))
    return tiny_sam


@pytest.fixture
def store(teacher, tmp_path) -> StoredEmbeddings:
    embed_pictures(teacher, open_images(SCENES), tmp_path / "store", EmbedOptions(views=2, mask_points=4))
    return StoredEmbeddings(tmp_path / "store")


@pytest.fixture(scope="session")
def fine_config(tiny_vit_config):
    """A TinyViT SAM of the teacher's grid."""
    return tiny_vit_config.replace(patch_size=8, stages=(StageConfig(8, 1, 0, 0, 1), StageConfig(16, 2, 2, 4, 2)))


@pytest.fixture
def student_folder(fine_config, make_sam, tmp_path) -> str:
    """The TinyViT with weights of its own."""
    return str(save_checkpoint(make_sam(fine_config, seed=5), tmp_path / "student"))


def options(student: str, **changes) -> TinySamOptions:
    common = {"prompting": HardPromptOptions(prompts=4, max_rounds=2), "workers": 0, "batch_size": 2, "validations": 0}
    return TinySamOptions(StudentOptions(student), **(common | changes))


def run(teacher, store, opts, pictures=None, **more):
    student = build_student(teacher, opts.student, opts.seed)
    pictures = open_labelled(SCENES) if pictures is None else pictures
    return student, distil_full_stage(student, teacher, store, pictures, opts, **more)


# --- Views


def test_an_example_is_a_function_of_its_number(store, fine_config):
    views = StoredViews(store, open_labelled(SCENES), fine_config, prompts=5)
    stream = DistilStream(views, range(10), seed=1)
    for number in (0, 7, 45):
        first, second = stream[number], DistilStream(views, range(10), seed=1)[number]
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.masks, second.masks)
        assert torch.equal(first.embedding, second.embedding)
    epoch = [stream[number].image.tobytes() for number in range(20)]
    assert len(set(epoch)) == 20, "an epoch shows every view once"
    assert set(epoch) == {stream[number].image.tobytes() for number in range(20, 40)}
    assert epoch != [stream[number].image.tobytes() for number in range(20, 40)]


def test_labels_are_the_annotations_as_the_crop_shows_them(store, fine_config):
    labelled = open_labelled(SCENES)
    views = StoredViews(store, labelled, fine_config, prompts=50)
    found = views.view(0, 1, np.random.default_rng(0))
    crop = store.options.fixed_views.crop(labelled.names[0], 1, *labelled[0].image.shape[:2])
    wanted = {crop.cells(annotation, 32).tobytes() for annotation in labelled[0].annotations}
    assert len(found.masks)
    assert {mask.tobytes() for mask in found.masks} <= wanted
    own = {tuple(box) for a in labelled[0].annotations if (box := crop.box(a, 64)) is not None}
    assert own
    for mask, box in zip(found.masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask > 127)
        cells = tuple(2 * side for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        assert tuple(box) in own or tuple(box) == cells
    assert own & {tuple(box) for box in found.boxes}


def test_without_labels_the_teachers_masks_stand_in(store, tiny_config, tiny_vit_config):
    own = store.view(0, 0).masks
    assert len(own)
    found = StoredViews(store, open_images(SCENES), tiny_config, 50).view(0, 0, np.random.default_rng(0))
    assert {(mask > 127).tobytes() for mask in found.masks} == {mask.tobytes() for mask in own}
    halved = StoredViews(store, open_images(SCENES), tiny_vit_config, 50)
    smaller = [view for number in range(10) if (view := halved.view(number, 0, np.random.default_rng(0))) is not None]
    assert smaller
    assert all(view.masks.shape[1:] == (16, 16) for view in smaller)


def test_a_picture_that_has_changed_or_is_new_is_refused(store, tiny_config, monkeypatch):
    pictures = open_images(SCENES)
    with pytest.raises(CompressionError, match="lacks 2 of the 12 pictures, the first is"):
        StoredViews(store, open_images("synthetic:12:3"), tiny_config, 4)
    name, image = pictures[0]
    monkeypatch.setattr(type(pictures), "__getitem__", lambda self, index: (name, image[::-1].copy()))
    with pytest.raises(CompressionError, match="has changed since its embedding was stored: embed again"):
        StoredViews(store, pictures, tiny_config, 4).view(0, 0, np.random.default_rng(0))


def test_views_without_any_mask_are_an_error_with_a_remedy(teacher, tmp_path, tiny_config):
    embed_pictures(teacher, open_images(SCENES), tmp_path / "bare", EmbedOptions(mask_points=0))
    views = StoredViews(StoredEmbeddings(tmp_path / "bare"), open_images(SCENES), tiny_config, 4)
    with pytest.raises(DataError, match="no view has a mask to prompt for: give labelled pictures"):
        DistilStream(views, range(10), 0)[0]


# --- A step


def test_a_step_encodes_once_decodes_each_round_and_never_runs_the_teachers_encoder(
    teacher, store, student_folder, monkeypatch
):
    opts = options(student_folder)
    student = build_student(teacher, opts.student, 0)
    views = StoredViews(store, open_labelled(SCENES), student.config, 4)
    batch = stack_distil_views([DistilStream(views, range(10), 0)[number] for number in range(2)])
    calls = []
    student.image_encoder.register_forward_hook(lambda *call: calls.append("encode"))
    student.mask_decoder.transformer.norm_final_attn.register_forward_hook(
        lambda module, inputs, output: calls.append("train" if output.requires_grad else "round")
    )
    teacher.mask_decoder.transformer.norm_final_attn.register_forward_hook(lambda *call: calls.append("teacher"))
    monkeypatch.setattr(teacher.image_encoder, "forward", pytest.fail)
    for step in range(6):
        calls.clear()
        FullStage(student, teacher, LossWeights(), opts.prompting, 0)(batch, step)
        rounds = draw_rounds(opts.prompting, seeded(0, step))
        # the draw comes first in a step's generator; both images of the batch share it
        assert calls == ["encode"] + ["round"] * 2 * rounds + ["teacher"] * 2 + ["train"] * 2


@pytest.mark.parametrize(
    ("weights", "decodes"),
    [
        (LossWeights(1, 0, 0, 0), set()),
        (LossWeights(0, 0, 0, 1), {"student"}),
        (LossWeights(0, 1, 0, 0), {"student", "teacher"}),
    ],
    ids=["embedding", "labels", "token"],
)
def test_what_no_weight_asks_for_is_not_computed(teacher, store, student_folder, weights, decodes):
    opts = options(student_folder)
    student = build_student(teacher, opts.student, 0)
    batch = stack_distil_views([DistilStream(StoredViews(store, open_labelled(SCENES), student.config, 4), [0], 0)[0]])
    seen = set()
    for name, model in (("student", student), ("teacher", teacher)):
        model.mask_decoder.transformer.norm_final_attn.register_forward_hook(lambda *call, name=name: seen.add(name))
    loss, _ = FullStage(student, teacher, weights, opts.prompting, 0)(batch, 0)
    loss.backward()
    assert seen == decodes
    assert student.image_encoder.patch_embed.conv1.conv.weight.grad.abs().max() > 0


def test_extra_losses_join_the_total(teacher, store, student_folder):
    opts = options(student_folder, weights=LossWeights(1, 0, 0, 0), steps=1)
    reports = []
    run(teacher, store, opts, on_step=lambda progress, report: reports.append(report))
    run(
        teacher,
        store,
        opts,
        extra={"seven": lambda outputs: 7 + 0 * outputs.embedding.sum()},
        on_step=lambda progress, report: reports.append(report),
    )
    assert reports[1]["loss"] == pytest.approx(reports[0]["loss"] + 7, rel=1e-5)
    assert reports[1]["seven"] == 7


# --- A run


def test_a_student_comes_closer_to_its_teacher_in_all_three_stages(teacher, store, student_folder):
    """The same labels, views and prompts; each loss falls where it is taken."""
    opts = options(student_folder, weights=LossWeights(1, 1, 1, 0), steps=40, ema_decay=0, learning_rate=3e-3)
    reports = []
    student, _ = run(teacher, store, opts, on_step=lambda progress, report: reports.append(report))
    for name in ("embedding", "token", "output"):
        first, last = (np.mean([report[name] for report in part]) for part in (reports[:5], reports[-5:]))
        assert last < 0.85 * first, name
    for part in (student.prompt_encoder, student.mask_decoder):
        same = [
            torch.equal(mine, theirs)
            for mine, theirs in zip(
                part.parameters(),
                (teacher.prompt_encoder if part is student.prompt_encoder else teacher.mask_decoder).parameters(),
                strict=True,
            )
        ]
        assert all(same) if part is student.prompt_encoder else not all(same)


def test_a_killed_run_continues_to_the_same_weights_and_curve(teacher, store, student_folder, tmp_path, monkeypatch):
    opts = options(student_folder, steps=6, validations=3)
    whole, wanted = run(teacher, store, opts, state_file=tmp_path / "a.state")

    class Killed(Exception):
        pass

    def kill(progress, report):
        if progress.step == 4:
            raise Killed

    # every step is far enough from the last save
    monkeypatch.setattr(loop, "perf_counter", iter(range(0, 10**9, 1000)).__next__)
    with pytest.raises(Killed):
        run(teacher, store, opts, state_file=tmp_path / "b.state", on_step=kill)
    monkeypatch.undo()
    steps = []
    resumed, got = run(
        teacher, store, opts, state_file=tmp_path / "b.state", on_step=lambda p, report: steps.append(p.step)
    )
    assert steps == [4, 5, 6]
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert got.history == wanted.history


def test_a_watched_run_reports_both_prompts_and_the_agreement_and_keeps_its_best(teacher, store, student_folder):
    opts = options(student_folder, steps=4, validations=2)
    _, progress = run(teacher, store, opts)
    watched = [row for row in progress.history if "score" in row]
    assert [row["step"] for row in watched] == [2, 4]
    for row in watched:
        assert row["score"] == pytest.approx((row["miou_point"] + row["miou_box"]) / 2)
        assert 0 <= row["agreement"] <= 1
    assert progress.best_score == max(row["score"] for row in watched)


def test_the_teacher_agrees_with_itself(teacher, store):
    views = StoredViews(store, open_labelled(SCENES), teacher.config, 4)
    watched = Watch(teacher, views, range(10))(teacher)
    # up to what int8 embeddings and their pixels' own forward pass differ by
    assert watched["agreement"] > 0.97
    assert watched["miou_box"] < 0.9


def test_an_epoch_is_a_pass_over_all_views_of_the_training_split(store):
    names = [f"{number}.jpg" for number in range(100)]
    held_out = sum(is_val(name) for name in names)
    plan = distil_plan(names, 2, options("vit_t", epochs=3, batch_size=4))
    assert plan.steps == 3 * ((100 - held_out) * 2 // 4)
    assert plan.optimizer == "adam"
    assert distil_plan(names, 2, options("vit_t", steps=11)).steps == 11


def test_a_smaller_student_learns_too(teacher, store, tiny_slim, tmp_path):
    folder = save_checkpoint(copy.deepcopy(tiny_slim), tmp_path / "slim")
    opts = replace(options(str(folder), steps=3), student=StudentOptions(str(folder), image_size=32))
    student, progress = run(teacher, store, opts, pictures=open_images(SCENES))
    assert student.config.mask_size == 16
    assert progress.step == 3
