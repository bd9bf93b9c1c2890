"""The campaign in small: one try in some hundred of each kind, without a failure."""

import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and counts in /proc"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.parametrize(("part", "share"), [("fuzz", 0.02), ("kills", 0.03), ("troubles", 0.1), ("leaks", 0.3)])
def test_nothing_breaks(work, part, share):
    from tests.campaign.__main__ import campaign

    tally = campaign(work, [part], share=share, seed=1)
    failures = [line for line in tally.lines if line["trouble"]]
    assert tally.lines
    assert not failures, failures[:3]
