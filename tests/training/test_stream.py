"""sam_edge.training.stream: example i is example i, whoever reads it."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage
from sam_edge.errors import DataError
from sam_edge.scenes.synthetic import SceneOptions, SyntheticScenes
from sam_edge.training import stream as stream_module
from sam_edge.training.stream import Source, Steps, ViewStream, stack_views, step_batches
from sam_edge.training.views import ViewOptions

OPTIONS = ViewOptions(image_size=64, mask_size=32, prompts=2, min_cells=4)


class Plain(LabelledDataset):
    """Pictures of one grey level, wholly one thing; `broken` ones raise."""

    def __init__(self, grey: int, count: int = 5, broken: frozenset[int] = frozenset()) -> None:
        self.grey, self.count, self.broken = grey, count, broken
        self.read: list[int] = []
        self.drawn: list[int] = []

    def draw(self, rng, shared) -> int:
        self.drawn.append(super().draw(rng, shared))
        return self.drawn[-1]

    @property
    def names(self) -> list[str]:
        return [str(index) for index in range(self.count)]

    def __getitem__(self, index: int) -> LabelledImage:
        self.read.append(index)
        if index in self.broken:
            raise DataError("this file was cut off")
        image = np.full((40, 40, 3), self.grey + index, np.uint8)
        return LabelledImage(str(index), image, (Annotation.from_mask(np.ones((40, 40), bool)),))


def scenes(seed: int = 5) -> ViewStream:
    """A stream of synthetic scenes."""
    return ViewStream([Source(SyntheticScenes(10, seed=1, options=SceneOptions(size=64)))], OPTIONS, seed)


def batches(stream: ViewStream, size: int, start: int, stop: int, workers: int = 0) -> list:
    return list(step_batches(stream, size, start, stop, workers=workers, collate=stack_views))


def assert_equal(one, other) -> None:
    """Bit-equal batches or views."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(np.asarray(a), np.asarray(b)), field.name


def test_batches_are_bit_equal_whatever_the_worker_count():
    alone, helped = (batches(scenes(), 3, 0, 4, workers) for workers in (0, 2))
    assert len(alone) == len(helped) == 4
    for one, other in zip(alone, helped, strict=True):
        assert_equal(one, other)
    assert not torch.equal(alone[0].image, alone[1].image)


def test_a_stream_resumed_at_a_step_goes_on_with_the_same_batches():
    whole = batches(scenes(), 2, 0, 5)
    for one, other in zip(whole[3:], batches(scenes(), 2, 3, 5), strict=True):
        assert_equal(one, other)


def test_an_example_depends_on_seed_and_number_alone():
    stream = scenes()
    backwards = [stream[index] for index in (7, 3, 7)]
    assert_equal(backwards[0], backwards[2])
    assert_equal(backwards[1], scenes()[3])
    assert not np.array_equal(scenes(6)[3].image, backwards[1].image)
    assert not np.array_equal(backwards[0].image, backwards[1].image)


def test_the_draws_do_not_touch_global_random_state():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    first = scenes()[0]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    np.random.seed(1)
    assert_equal(first, scenes()[0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_shares_of_the_ranks_are_disjoint_and_cover_every_step(monkeypatch, world):
    monkeypatch.setattr(stream_module, "world", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(stream_module, "rank", lambda rank=rank: rank)
        shares.append(list(Steps(2, 6, batch_size=4)))
        assert len(Steps(2, 6, batch_size=4)) == 4
    for number, step in enumerate(zip(*shares, strict=True), start=2):
        numbers = [index for share in step for index in share]
        # all that this step's joint batch holds, each once
        assert sorted(numbers) == list(range(number * world * 4, (number + 1) * world * 4))
        assert all(len(share) == 4 for share in step)


def test_a_broken_file_is_passed_over():
    broken = Plain(100, 5, frozenset({0, 2, 3}))
    stream = ViewStream([Source(broken)], OPTIONS, seed=0)
    greys = {int(stream[index].image.max()) for index in range(20)}
    assert broken.read.count(0) + broken.read.count(2) + broken.read.count(3) > 5
    assert len(greys) > 3
    # the same example again, though its first draws fail again
    assert_equal(stream[4], stream[4])


def test_nothing_but_broken_files_ends_with_an_error():
    dataset = Plain(100, 3, frozenset({0, 1, 2}))
    with pytest.raises(DataError, match="no usable mask in 100 draws"):
        ViewStream([Source(dataset)], OPTIONS, seed=0)[0]
    assert len(dataset.read) == 100


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_says_what_is_wrong_in_one_line(workers):
    stream = ViewStream([Source(Plain(0, broken=frozenset(range(5))), 1.0)], OPTIONS, seed=0)
    with pytest.raises(DataError, match=r"\Ano usable mask in 100 draws: this file was cut off\Z"):
        list(step_batches(stream, 2, 0, 1, workers=workers, collate=stack_views))


def test_pictures_without_a_visible_mask_are_passed_over():
    class Bare(Plain):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return LabelledImage(sample.name, sample.image, ()) if index else sample

    stream = ViewStream([Source(Bare(100, 4))], ViewOptions(64, 32, 2, colour=0.0), seed=0)
    assert {int(stream[index].image[0, 20, 20]) for index in range(10)} == {100}


def test_sources_are_drawn_by_their_weights():
    options = ViewOptions(image_size=64, mask_size=32, prompts=1, colour=0.0)
    dark, light, never = Plain(10), Plain(200), Plain(100)
    stream = ViewStream([Source(dark, 3.0), Source(light, 1.0), Source(never, 0.0)], options, seed=2)
    count = sum(int(stream[index].image[0, 20, 20]) < 50 for index in range(400))
    # 300 expected, standard deviation 8.7
    assert 265 < count < 335
    assert not never.drawn
    # within a source, every picture alike
    assert min(dark.drawn.count(index) for index in range(5)) > 35


def test_no_source_is_refused():
    with pytest.raises(DataError, match="at least one labelled data set: give --data"):
        ViewStream([], OPTIONS, seed=0)


def test_a_batch_is_its_views_stacked():
    stream = scenes()
    (batch,) = batches(stream, 3, 0, 1)
    for index in range(3):
        view = stream[index]
        for name in ("image", "masks", "interior", "boxes", "extent"):
            np.testing.assert_array_equal(getattr(batch, name)[index].numpy(), getattr(view, name))
    assert (batch.image.dtype, batch.masks.dtype) == (torch.uint8, torch.uint8)
    assert batch.interior.dtype == batch.boxes.dtype == batch.extent.dtype == torch.float32
    assert batch.masks.shape == (3, 2, 32, 32)
