"""What a run would be: the same answers as the run itself would give."""

from __future__ import annotations

import pytest

from pipeline.config.cli import parse
from pipeline.errors import ConfigError
from pipeline.report.dry_run import dry_run

SMALL = ["--dataset", "cifar10", "--width", "0.0625"]


def test_a_split_that_cuts_a_segment_found_by_arithmetic_is_refused_here_too() -> None:
    config = parse([*SMALL, "--segments", "2", "--split", "1,7"]).config
    with pytest.raises(ConfigError, match=r"--split 1,7 cuts a segment of --segments \d,\d after 1 blocks"):
        dry_run(config, 1)


def test_the_counts_found_for_segments_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(parse([*SMALL, "--segments", "2", "--stages", "2"]).config, 1)
    assert "segments = [" in capsys.readouterr().out
