"""sam_edge.evaluate.walk: whichever way a data set is walked, whole, in parts, or after a kill, the numbers are one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.evaluate.agreement import evaluate_agreement
from sam_edge.evaluate.clicks import evaluate_clicks
from sam_edge.evaluate.everything import evaluate_strategies
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.evaluate.walk import Kept, Share, walk
from tests.drawing import DrawingRuntime

SIZE = 64


class Pictures(LabelledDataset):
    """Grey pictures with a square each; those of `broken` cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken, self.read = count, broken, []

    @property
    def names(self) -> list[str]:
        return [f"{index}.png" for index in range(self.count)]

    def __getitem__(self, index: int) -> LabelledImage:
        if index in self.broken:
            raise DataError("broken")
        self.read.append(index)
        mask = np.zeros((SIZE, SIZE), bool)
        mask[8 : 20 + 4 * index, 10:40] = True
        return LabelledImage(f"{index}.png", np.full((SIZE, SIZE, 3), index, np.uint8), (Annotation.from_mask(mask),))


class Plain(Pictures):
    """The same without labels."""

    def __getitem__(self, index: int):
        sample = super().__getitem__(index)
        return sample.name, sample.image


PROTOCOLS = {
    "prompts": lambda data, kept: evaluate_prompts(DrawingRuntime(), data, [Asked("box"), Asked("point")], kept=kept),
    "clicks": lambda data, kept: evaluate_clicks(DrawingRuntime(), data, clicks=3, kept=kept),
    "everything": lambda data, kept: [
        {key: value for key, value in row.as_dict().items() if key != "seconds"}
        for row in evaluate_strategies(DrawingRuntime(), data, points_per_side=3, kept=kept)
    ],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parts_and_a_kill_change_no_number(protocol, tmp_path):
    run, file = PROTOCOLS[protocol], tmp_path / "results.jsonl"
    whole = run(Pictures(7), None)
    for index in range(3):
        run(Pictures(7), Kept(file, {"model": "a"}, Share(index, 3)))
    assert len(list(tmp_path.iterdir())) == 3
    # the second part was killed within a line
    part = tmp_path / "results.2-of-3.jsonl"
    part.write_bytes(part.read_bytes()[:-9])
    data = Pictures(7)
    assert run(data, Kept(file, {"model": "a"})) == whole
    assert data.read == [4]
    assert run(Pictures(7), Kept(file, {"model": "a"})) == whole


def test_a_part_says_what_is_left_and_counts_its_own(tmp_path):
    kept = Kept(tmp_path / "a.jsonl", {}, Share.parse("2/3"))
    heard: list[int] = []
    data = Pictures(7)
    found = evaluate_prompts(DrawingRuntime(), data, [Asked("box")], kept=kept, on_image=lambda: heard.append(1))[0]
    assert (found.images, found.left, data.read) == (2, 5, [1, 4])
    assert len(heard) == 2


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_cannot_be_read_is_counted_and_tried_again(tmp_path):
    kept = Kept(tmp_path / "a.jsonl")
    found = evaluate_prompts(DrawingRuntime(), Pictures(4, broken=(1, 2)), [Asked("box")], kept=kept)[0]
    assert (found.images, found.skipped) == (2, 2)
    mended = Pictures(4, broken=(1,))
    found = evaluate_prompts(DrawingRuntime(), mended, [Asked("box")], kept=kept)[0]
    assert (found.images, found.skipped, mended.read) == (3, 1, [2])


@pytest.mark.filterwarnings("ignore:skipped")
def test_the_first_of_several_processes_does_not_wait_for_what_another_could_not_read(tmp_path):
    file = tmp_path / "a.jsonl"
    evaluate_prompts(DrawingRuntime(), Pictures(4, broken=(1,)), [Asked("box")], kept=Kept(file, {}, Share(1, 2)))
    first = Kept(file, {}, Share(0, 2), waits=True)
    found = evaluate_prompts(DrawingRuntime(), Pictures(4, broken=(1,)), [Asked("box")], kept=first)[0]
    assert (found.images, found.skipped, found.left) == (3, 1, 0)


def test_results_of_something_else_are_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    evaluate_prompts(DrawingRuntime(), Pictures(1), [Asked("box")], kept=Kept(file, {"model": "a"}))
    with pytest.raises(SamEdgeError, match="results of another model"):
        evaluate_prompts(DrawingRuntime(), Pictures(1), [Asked("box")], kept=Kept(file, {"model": "b"}))
    assert json.loads(file.read_text().splitlines()[0])["of"] == {"model": "a"}


def test_pictures_of_one_name_are_told_apart():
    found = walk(["a", "a"], lambda numbers: ((number, str(number), number) for number in numbers)).found
    assert list(found.values()) == [0, 1]


def test_the_hash_is_of_pixels_and_labels():
    def sha256(data):
        return evaluate_prompts(DrawingRuntime(), data, [Asked("box")])[0].data_sha256

    class Moved(Pictures):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return LabelledImage(sample.name, sample.image, (Annotation.from_mask(~sample.annotations[0].mask()),))

    assert sha256(Pictures(2)) == sha256(Pictures(2)) != sha256(Pictures(3))
    assert sha256(Moved(2)) != sha256(Pictures(2))


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3"])
def test_parts_that_there_are_not_are_refused(text):
    with pytest.raises(DataError, match="K/N"):
        Share.parse(text)


def test_a_part_needs_a_file():
    with pytest.raises(DataError, match="--results"):
        Kept(None, {}, Share(0, 2))


def test_torchrun_is_known_by_its_environment(monkeypatch):
    assert Share.of_torchrun() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert Share.of_torchrun() == Share(2, 4)


@pytest.mark.slow
def test_two_processes_of_a_torchrun_print_one_result(tmp_path):
    """As torchrun starts them, by the environment alone; the first waits for the second and sums up."""
    command = [sys.executable, "-m", "sam_edge", "eval", "nano", "--data", "synthetic:20", "--limit", "3", "--json"]
    command += ["--results", str(tmp_path / "results.jsonl")]

    def start(rank: int) -> subprocess.Popen:
        environment = {"WORLD_SIZE": "2", "RANK": str(rank)}
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE)

    processes = [start(0), start(1)]
    first, second = (process.communicate(timeout=300)[0] for process in processes)
    assert json.loads(first)["images"] == 3
    assert second == b""


class Shrunk(DrawingRuntime):
    """Draws as its parent does, but smaller, and expects more of the fourth mask."""

    def decode(self, embeddings, prompts):
        logits, iou = super().decode(embeddings, prompts)
        iou[..., 3] = 1.0
        return logits - 1, iou


def test_a_model_agrees_with_itself_and_less_with_another():
    pictures = Plain(3)
    same = evaluate_agreement(DrawingRuntime(), DrawingRuntime(), pictures, points_per_side=3)
    assert (same.point, same.point_parents_choice, same.box, same.predicted_iou_error) == (1, 1, 1, 0)
    assert (same.images, same.prompts) == (3, 2 * 27)
    other = evaluate_agreement(Shrunk(), DrawingRuntime(), pictures, points_per_side=3)
    # a disc of radius 10 against 9, and against 6 and 5, whose logits are 4 and 5 lower
    assert 0.7 < other.point_parents_choice < 0.9
    assert other.point < other.point_parents_choice
    assert other.box is not None
    assert 0.5 < other.box < 1
    assert [name for name, _ in other.worst] == [f"{index}.png" for index in range(3)]


def test_agreement_goes_on_too(tmp_path):
    kept = Kept(tmp_path / "a.jsonl")
    whole = evaluate_agreement(Shrunk(), DrawingRuntime(), Plain(3), points_per_side=2, kept=kept)
    again = Plain(3)
    assert evaluate_agreement(Shrunk(), DrawingRuntime(), again, points_per_side=2, kept=kept) == whole
    assert again.read == []
    with pytest.raises(DataError, match="at least one point"):
        evaluate_agreement(Shrunk(), DrawingRuntime(), again, points_per_side=0)
