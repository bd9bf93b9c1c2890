"""sam_edge.bench.kernels: which attentions an encoder has, and what they take at least."""

import pytest

from sam_edge.bench.kernels import Rates, attentions, main
from sam_edge.errors import BenchError
from sam_edge.kernels.attention import Work
from sam_edge.segment.config import BlockConfig, ModelConfig


def test_attentions_of_one_size_are_one() -> None:
    """Windows of 14 in a grid of 64 are 25, those at the edges filled up."""
    window, whole = (BlockConfig(embed=168, qk=168, v=96, mlp=696, heads=12, window=side) for side in (14, 0))
    config = ModelConfig("slim_vit", 1024, (window, window, whole, window), patch_size=16)
    assert attentions(config) == {(25, 12, 14, 14, 14, 8): (0, 3), (1, 12, 64, 64, 14, 8): (2, 1)}


def test_a_limit_is_of_arithmetic_or_of_memory() -> None:
    rates = Rates(multiplications_per_s=1e9, bytes_per_s=1e6)
    assert rates.least_ms(Work(multiplications=2 * 10**9, exponentials=0, bytes=10**6)) == 2000
    assert rates.least_ms(Work(multiplications=10**9, exponentials=0, bytes=3 * 10**6)) == 3000


def test_what_is_no_exported_folder_is_refused() -> None:
    with pytest.raises(BenchError, match="vit_b is no exported folder"):
        main(["vit_b", "--turns", "1"])
