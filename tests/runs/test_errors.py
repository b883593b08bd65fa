"""What a user can get wrong: one line, the right status, no traceback; under torchrun the line exactly once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Finished, call, spawn

pytestmark = pytest.mark.runs

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")

# Answered before torch is imported: flags, files, splits, world sizes.
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
    ("--optimizer lion", r"--optimizer is 'lion'; choose one of adam, amsgrad, sgd"),
    ("--momentum 0.9", r"--momentum 0\.9 needs --optimizer sgd, not adam"),
    ("--similarity-head mean", r"--similarity-head is 'mean'; choose one of conv, pool-2, .*none"),
    (
        "--similarity-head pool-4 --loss pred",
        r"--similarity-head pool-4 needs a loss with a similarity head, not pred",
    ),
    ("--locality group --loss glob", r"--locality group needs a local loss, not glob"),
    ("--nonlinearity tanh", r"--nonlinearity is 'tanh'; choose one of auto, relu, leaky_relu"),
    ("--width 0", r"--width is 0\.0; give a finite number above 0"),
    ("--width 0.001", r"--width is 0\.001, which leaves vgg8b without channels"),
    ("--width 2 --model mlp", r"--width is 2, but mlp has no channels; use --hidden-units"),
    ("--hidden-layers 0 --model mlp --dataset mnist", r"--hidden-layers is 0; give a whole number at least 1"),
    ("--dataset digits --model vgg16", r"images of 16x16 pixels are too small for vgg16"),
    ("--queue-depth 0", r"--queue-depth is 0; give a whole number at least 1"),
    ("--timeout 0", r"--timeout is 0\.0; give a finite number above 0"),
    ("--threads 0", r"--threads is 0; give a whole number at least 1"),
    ("--device tpu", r"--device is 'tpu'; choose auto, cpu, cuda or cuda:N"),
    ("--precision fp8", r"--precision is 'fp8'; choose one of fp32, bf16"),
    ("--wire int8", r"--wire is 'int8'; choose one of auto, fp32, bf16, fp16"),
    ("--train-limit 0", r"--train-limit is 0; give a whole number at least 1"),
    ("--train-limit 5000", r"--train-limit is 5000, but digits has 1437 training samples"),
    ("--cutout 99", r"--cutout is 99, more than twice the side of digits's 16x16 images"),
    ("--split 3,x", r"argument --split: '3,x' is neither auto nor block counts"),
    ("--split 3,0,5", r"--split is '3,0,5'; give auto or block counts of at least 1"),
    ("--recipe cifar", r"--recipe is 'cifar'; choose one of digits"),
    ("--recipe digits --config x.toml", r"--recipe digits and --config x\.toml both set everything"),
    ("--config missing.toml", r"--config missing\.toml cannot be read \(No such file or directory\)"),
    ("--config broken.toml", r"broken\.toml is not TOML"),
    ("--config odd.toml", r"odd\.toml has an unknown entry train\.speed"),
]

# Layouts: in one process, and in two.
ONE_PROCESS: list[tuple[str, str]] = [
    ("--split 3,3", r"--split 3,3 places 6 blocks, but the network has 8; make the counts add up to 8"),
    ("--split 4,4 --stages 3", r"--split 4,4 makes 2 stages, but --stages is 3; drop one of them"),
    ("--stages 9", r"--stages 9 for a network of 8 blocks leave stages empty; use at most 8"),
]
TWO_PROCESSES: list[tuple[str, str]] = [
    ("--split 3,3,2", r"--split 3,3,2 makes 3 stages, but there are 2 processes, one stage each"),
    ("--stages 3", r"--stages is 3, but under torchrun stages are the 2 processes; drop --stages"),
    ("--dataset mnist --model mlp --hidden-layers 1 --split 3,2", r"--split 3,2 places 5 blocks, but .* has 2"),
]

# Found by process 0 once torch is there: data, folders, devices.
LATE: list[tuple[str, str]] = [
    ("--dataset mnist --data-dir nowhere", r"nowhere.*--download"),
    ("--dataset cifar10 --data-dir empty", r"empty.*--download"),
    ("--dataset fashion_mnist --data-dir damaged", r"damaged"),
    ("--dataset image_folder --data-dir empty", r"empty.*train"),
    (
        "--output finished",
        r"--output finished holds a run already \(summary\.json\); choose another folder or add --ov",
    ),
    ("--output broken.toml/run", r"--output broken\.toml/run cannot be written \(Not a directory\)"),
    ("--trace nowhere/t.json", r"--trace nowhere/t\.json cannot be written \(no folder nowhere\)"),
    ("--device cuda:99", r"--device is cuda:99, but .* GPU"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files to go wrong with."""
    (tmp_path / "broken.toml").write_text("[train")
    (tmp_path / "odd.toml").write_text("[train]\nspeed = 3\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "summary.json").write_text("{}")
    raw = tmp_path / "damaged" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"garbage")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"garbage")
    return tmp_path


def check(ends: list[Finished], message: str) -> None:
    assert [end.status for end in ends] == [2] * len(ends), ends
    printed = "".join(end.stderr for end in ends)
    assert printed.count("error: ") == 1, printed
    assert printed.count("\n") == 1 and printed.startswith("error: "), printed
    assert re.search(message, printed), printed
    assert not any(end.stdout for end in ends)


def test_the_table_is_long_enough() -> None:
    assert len(FLAGS) + len(ONE_PROCESS) + len(TWO_PROCESSES) + len(LATE) >= 25


@pytest.mark.parametrize(("flags", "message"), FLAGS + ONE_PROCESS + LATE)
def test_a_mistake_is_one_line_with_status_2(folder: Path, flags: str, message: str) -> None:
    check(spawn([SCRIPT, *flags.split()], 1, 60, cwd=folder), message)


@pytest.mark.parametrize(("flags", "message"), FLAGS + TWO_PROCESSES + LATE)
def test_under_torchrun_the_line_is_printed_once(folder: Path, flags: str, message: str) -> None:
    check(spawn([SCRIPT, *flags.split()], 2, 60, cwd=folder), message)


def test_flag_errors_answer_before_torch_is_imported(folder: Path) -> None:
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')")
    for flags, message in (*FLAGS, *ONE_PROCESS):
        check(spawn(["-I", "-c", _LAUNCH, *flags.split()], 1, 60, cwd=folder), message)


_LAUNCH = (
    f"import sys, runpy; sys.path[:0] = ['.', {str(ROOT)!r}]; sys.argv[0] = {SCRIPT!r}; "
    f"runpy.run_path({SCRIPT!r}, run_name='__main__')"
)


@pytest.mark.parametrize("flags", ["--epochs 0", "--dataset mnist --data-dir nowhere"])
def test_a_real_torchrun_reports_status_2_and_shows_the_line_once(folder: Path, flags: str) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    done = call(*torchrun, SCRIPT, *flags.split(), cwd=folder)
    assert done.returncode == 1, "torchrun turns every failure into status 1"
    assert done.stderr.count("error: --epochs is 0") + done.stderr.count("error: mnist") == 1, done.stderr
    assert re.findall(r"exitcode +: (-?\d+)", done.stderr) == ["2"] * 3, done.stderr
    assert "pipeline/" not in done.stderr, "a traceback of ours"
