"""The teacher's embeddings on disk: computed once, the same after a kill, within the budget."""

import pytest
import torch

from sam_edge.compress.teacher import EmbeddingStore, Teacher

SHAPE = (32, 8, 8)
BYTES = 2 * 32 * 8 * 8


@pytest.fixture
def views():
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_view_is_encoded_once_and_read_back_in_half_precision(tiny_slim, views, tmp_path):
    teacher = Teacher(tiny_slim, EmbeddingStore(tmp_path, 6, SHAPE, 10**9))
    numbers = torch.tensor([4, 1])
    first = teacher.embedding(numbers, views[numbers])
    torch.testing.assert_close(first, tiny_slim.encode(views[numbers]), atol=2e-3, rtol=2e-3)
    assert teacher.passes == 1
    # what is asked for is not looked at any more
    assert torch.equal(teacher.embedding(numbers.flip(0), torch.zeros(2, 3, 64, 64)), first.flip(0))
    assert teacher.passes == 1


def test_another_process_sees_what_was_kept_and_the_same_values(tiny_slim, views, tmp_path):
    numbers = torch.tensor([0, 1])
    first = Teacher(tiny_slim, EmbeddingStore(tmp_path, 6, SHAPE, 10**9)).embedding(numbers, views[:2])
    second = Teacher(tiny_slim, EmbeddingStore(tmp_path, 6, SHAPE, 10**9))
    assert torch.equal(second.embedding(numbers, torch.zeros(2, 3, 64, 64)), first)
    # one of the batch is missing: the kept one stays what it was
    mixed = second.embedding(torch.tensor([1, 2]), views[1:3])
    assert second.passes == 1
    assert torch.equal(mixed[0], first[1])


def test_the_budget_is_kept(tiny_slim, views, tmp_path):
    store = EmbeddingStore(tmp_path, 6, SHAPE, 2 * BYTES + BYTES // 2)
    teacher = Teacher(tiny_slim, store)
    for _ in range(2):
        for number in range(6):
            teacher.embedding(torch.tensor([number]), views[number : number + 1])
    assert teacher.passes == 6 + 4
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 2 * BYTES + 2


def test_without_a_folder_everything_is_computed_and_rounded_alike(tiny_slim, views, tmp_path):
    kept = Teacher(tiny_slim, EmbeddingStore(tmp_path, 6, SHAPE, 10**9))
    bare = Teacher(tiny_slim, EmbeddingStore(None, 6, SHAPE, 10**9))
    numbers = torch.arange(3)
    wanted = kept.embedding(numbers, views[:3])
    assert torch.equal(bare.embedding(numbers, views[:3]), wanted)
    assert torch.equal(kept.embedding(numbers, views[:3]), wanted)
    bare.embedding(numbers, views[:3])
    assert (bare.passes, kept.passes) == (2, 1)
