"""sam_edge.runtimes.paying: the table of where integers pay."""

import json
from dataclasses import asdict

import pytest

from sam_edge.runtimes import paying
from sam_edge.runtimes.paying import Row, family, pays, read_table

ROWS = [Row("linear", 64, 64, 0.8), Row("linear", 768, 768, 1.5), Row("depthwise", 64, 64, 0.5)]


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "wanted"),
    [
        ("linear", 64, 64, False),
        ("linear", 150, 100, False),
        ("linear", 400, 1024, True),
        ("depthwise", 4096, 4096, False),
        ("pointwise", 64, 64, True),
    ],
)
def test_the_nearest_measured_layer_of_its_kind_decides(kind, inputs, outputs, wanted):
    assert pays(ROWS, kind, inputs, outputs) == wanted


@pytest.mark.parametrize(
    ("features", "wanted"),
    [
        (("AVX2", "AVX-512", "VNNI", "AMX int8"), "amx"),
        (("AVX2", "AVX-512", "VNNI"), "vnni"),
        (("AVX2", "AVX-512"), "avx2"),
        (("NEON", "dot products"), "dot"),
        (("NEON",), "other"),
    ],
)
def test_a_family_is_the_fastest_of_what_a_processor_has(monkeypatch, features, wanted):
    monkeypatch.setattr(paying, "features", lambda: features)
    assert family() == wanted


def test_the_table_that_ships_is_read_and_knows_families_only(tmp_path):
    table = read_table()
    assert set(table["onnxruntime"]) <= {*paying.FAMILIES, paying.UNKNOWN}
    rows = table["onnxruntime"]["avx2"]
    assert {row.kind for row in rows} == {"linear", "convolution", "pointwise", "depthwise"}
    assert all(0.1 < row.ratio < 10 for row in rows)
    (tmp_path / "copy.json").write_text(json.dumps({"onnxruntime": {"avx2": [asdict(row) for row in rows]}}))
    assert read_table(tmp_path / "copy.json")["onnxruntime"]["avx2"] == rows
