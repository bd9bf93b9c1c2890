"""sam_edge.studies.lineage: what is raced is written with where it comes from, and is what the tables are made of."""

import json
from pathlib import Path

import pytest

from sam_edge.bench.integers import Contender, Turns
from sam_edge.bench.provenance import model_sha256
from sam_edge.studies import lineage
from sam_edge.studies.results import Results
from sam_edge.studies.results import lineage as table


def test_a_race_is_written_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    (work / "yardstick" / "nano-vit").mkdir(parents=True)
    (work / "yardstick" / "nano-vit" / "encoder.onnx").write_bytes(b"graph")
    names = ("nano-vit yardstick", "nano-vit float onnxruntime", "nano-vit int8 onnxruntime")
    monkeypatch.setattr(
        lineage, "made", lambda network, work: {name: Contender("onnxruntime", work / "x") for name in names}
    )

    def race(forms, *, side, threads, turns):
        assert (side, turns) == (512, 3)
        return {
            name: Turns((ms, ms + 1.0, ms + 2.0), (ms, ms, ms), 10**8, 10**6)
            for name, ms in zip(forms, (80.0, 60.0, 20.0), strict=True)
        }

    monkeypatch.setattr(lineage, "race", race)
    out = tmp_path / "docs" / "results" / "lineage.json"
    lineage.main([str(work), "--networks", "nano-vit", "--turns", "3", "--threads", "2", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["provenance"]["models"] == {"random:nano-vit": model_sha256("random:nano-vit")}
    assert found["provenance"]["hardware"]["threads"] == 2
    assert [bar["ratio"] for bar in found["bars"]] == [pytest.approx(21 / 81)]
    text = table(Results(tmp_path))
    assert "| nano-vit int8 onnxruntime | 21 ms | 20 ms | 0.26 | 0.34 | 0.10 GB |" in text
    assert "2 threads" in text
