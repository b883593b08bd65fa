"""What a user can get wrong with flags: each mistake is told by its values, in one line, before torch is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.cli import parse
from pipeline.errors import ConfigError
from tests.support.mistakes import write_mistakes

# However many processes there are.
FLAGS: list[tuple[str, str]] = [
    ("--epochs 0", r"--epochs is 0; give a whole number at least 1"),
    ("--epochs ten", r"argument --epochs: 'ten' is not a whole number; see --help"),
    ("--epoch 3", r"unrecognized arguments: --epoch 3; see --help"),
    ("--batch-size 1", r"--batch-size is 1; give a whole number at least 2"),
    ("--lr 0", r"--lr is 0\.0; give a finite number above 0"),
    ("--lr nan", r"--lr is nan; give a finite number above 0"),
    ("--lr inf", r"--lr is inf; give a finite number above 0"),
    ("--lr-milestones 5 3", r"--lr-milestones 5 3 do not rise; give each once"),
    ("--lr-milestones 0", r"--lr-milestones has 0; give epochs"),
    ("--beta 1.5", r"--beta is 1\.5; give a finite number at least 0 and at most 1"),
    ("--dropout 1", r"--dropout is 1\.0; give 0 up to below 1"),
    ("--loss hinge", r"--loss is 'hinge'; choose one of glob, pred, sim"),
    ("--dataset imagenet", r"--dataset is 'imagenet'; choose one of digits, mnist"),
    ("--model vgg7", r"--model is 'vgg7'; choose one of mlp, vgg6a"),
    ("--optimizer lion", r"--optimizer is 'lion'; choose one of adam, amsgrad, sgd, muon"),
    ("--momentum 0.9", r"--momentum 0\.9 needs --optimizer sgd or muon, not adam"),
    ("--momentum 1 --optimizer muon", r"--momentum is 1; give 0 up to below 1"),
    ("--nesterov --momentum 0 --optimizer muon", r"--nesterov needs a --momentum above 0; give one, such as 0\.9"),
    ("--head-lr 0", r"--head-lr is 0\.0; give a finite number above 0 and at most 1e\+06"),
    ("--ema 1", r"--ema is 1; give 0 up to below 1"),
    ("--ema -0.1", r"--ema is -0\.1; give a finite number at least 0"),
    ("--similarity-head mean", r"--similarity-head is 'mean'; choose one of conv, pool-4x4"),
    (
        "--similarity-head pool-4x4 --loss pred",
        r"--similarity-head pool-4x4 needs a loss with a similarity head, not pred",
    ),
    ("--segments 2 --loss glob", r"--segments 2 needs a local loss, not glob, which is one segment over everything"),
    ("--segments 3,x", r"argument --segments: '3,x' is not block, a number of segments, or counts such as 3,3,2"),
    ("--segments 0", r"--segments is 0; give block, a number of segments, or block counts of at least 1"),
    ("--config old.toml", r"old\.toml has train\.locality, which --segments has replaced; drop the entry"),
    ("--nonlinearity tanh", r"--nonlinearity is 'tanh'; choose one of auto, relu, leaky_relu"),
    ("--width 0", r"--width is 0\.0; give a finite number above 0"),
    ("--width 0.001", r"--width is 0\.001, which leaves vgg8b without channels"),
    ("--width 2 --model mlp", r"--width is 2, but mlp has no channels; use --hidden-units"),
    ("--hidden-layers 0 --model mlp --dataset mnist", r"--hidden-layers is 0; give a whole number at least 1"),
    ("--dataset digits --model vgg16", r"images of 16x16 pixels are too small for vgg16"),
    ("--queue-depth 0", r"--queue-depth is 0; give a whole number at least 1"),
    ("--timeout 0", r"--timeout is 0\.0; give a finite number above 0"),
    ("--threads 0", r"--threads is 0; give auto, a whole number at least 1"),
    ("--threads 2,0", r"--threads is 2,0; give auto, a whole number at least 1 .* or one a process, such as 3,1"),
    ("--threads 2000", r"--threads is 2000; .*at most 1024"),
    ("--threads few", r"argument --threads: 'few' is not auto, a number of at most 1024, or one a process"),
    ("--threads block", r"argument --threads: 'block' is not auto"),
    ("--device tpu", r"--device is 'tpu'; choose auto, cpu, cuda or cuda:N"),
    ("--precision fp8", r"--precision is 'fp8'; choose one of fp32, bf16"),
    ("--wire int8", r"--wire is 'int8'; choose one of auto, fp32, bf16, fp16"),
    ("--train-limit 0", r"--train-limit is 0; give a whole number at least 1"),
    ("--train-limit 5000", r"--train-limit is 5000, but digits has 1437 training samples"),
    (
        "--head-lr 0.1 --loss glob",
        r"--head-lr 0\.1 needs a loss whose local heads have weights, not glob; drop one of them",
    ),
    (
        "--head-lr 0.1 --loss sim-bio",
        r"--head-lr 0\.1 needs a loss whose local heads have weights, not sim-bio; drop one of them",
    ),
    ("--held-out 1", r"--held-out is 1; give 0 up to below 1"),
    ("--held-out -0.1", r"--held-out is -0\.1; give a finite number at least 0"),
    ("--held-out 0.1 --test-limit 50", r"--held-out 0\.1 is evaluated in place of the test set, .*--test-limit 50"),
    ("--cutout 99", r"--cutout is 99, more than twice the side of digits's 16x16 images"),
    ("--split 3,x", r"argument --split: '3,x' is neither auto nor block counts"),
    ("--split 3,0,5", r"--split is '3,0,5'; give auto or block counts of at least 1"),
    ("--recipe cifar", r"--recipe is 'cifar'; choose one of --list-recipes, such as .*cifar10/"),
    ("--recipe digits --config x.toml", r"--recipe digits and --config x\.toml both set everything"),
    ("--config missing.toml", r"--config missing\.toml cannot be read \(No such file or directory\)"),
    ("--config broken.toml", r"broken\.toml is not TOML"),
    ("--config odd.toml", r"odd\.toml has an unknown entry train\.speed; like it are seed"),
]

# Layouts: in one process, and in two.
ONE_PROCESS: list[tuple[str, str]] = [
    ("--split 3,3", r"--split 3,3 places 6 blocks, but the network has 8; make the counts add up to 8"),
    ("--split 4,4 --stages 3", r"--split 4,4 makes 2 stages, but --stages is 3; drop one of them"),
    ("--segments 3,3", r"--segments 3,3 covers 6 blocks, but the network has 8; make the counts add up to 8"),
    (
        "--segments 3 --first-cut-after 7",
        r"--first-cut-after 7 leaves 1 of the 8 blocks for the other 2 of --segments 3; give at most 6",
    ),
    (
        "--segments 3,5 --first-cut-after 3",
        r"--first-cut-after 3 needs a number of --segments, not 3,5; give one, such as",
    ),
    ("--first-cut-after 3", r"--first-cut-after 3 needs a number of --segments, not block; give one, such as"),
    ("--segments 2 --first-cut-after 0", r"--first-cut-after is 0; give a whole number at least 1"),
    ("--segments 9", r"--segments 9 for a network of 8 blocks leaves some empty; use at most 8"),
    ("--segments 3,5 --split 4,4", r"--split 4,4 cuts a segment of --segments 3,5 after 4 blocks; let stages end"),
    ("--segments 3,5 --stages 3", r"3 stages for the 2 segments of --segments 3,5 leave stages empty; use at most 2"),
    ("--stages 9", r"--stages 9 for a network of 8 blocks leave stages empty; use at most 8"),
]
TWO_PROCESSES: list[tuple[str, str]] = [
    ("--split 3,3,2", r"--split 3,3,2 makes 3 stages, but there are 2 processes, one stage each"),
    ("--segments 1", r"2 stages for the 1 segments of --segments 1 leave stages empty; use at most 1"),
    ("--stages 3", r"--stages is 3, but under torchrun stages are the 2 processes; drop --stages"),
    ("--dataset mnist --model mlp --hidden-layers 1 --split 3,2", r"--split 3,2 places 5 blocks, but .* has 2"),
]


def in_worlds(*sizes: int, rows: list[tuple[str, str]]) -> list[tuple[int, str, str]]:
    return [(size, *row) for size in sizes for row in rows]


@pytest.mark.parametrize(
    ("processes", "flags", "message"),
    in_worlds(1, 2, rows=FLAGS) + in_worlds(1, rows=ONE_PROCESS) + in_worlds(2, rows=TWO_PROCESSES),
)
def test_a_mistake_is_told_in_one_line(
    processes: int, flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_mistakes(tmp_path))
    with pytest.raises(ConfigError, match=message) as caught:
        parse(flags.split()).config.check_world(processes)
    assert "\n" not in str(caught.value)
    assert caught.value.rank == 0, "every process finds it, process 0 tells it"
