"""Files to go wrong with."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_mistakes"]


def write_mistakes(folder: Path) -> Path:
    """Broken and odd configurations, an empty and a finished run folder, a damaged data set; returns `folder`."""
    (folder / "broken.toml").write_text("[train")
    (folder / "old.toml").write_text('[train]\nlocality = "block"\n')
    (folder / "odd.toml").write_text("[train]\nspeed = 3\n")
    (folder / "empty").mkdir()
    (folder / "finished").mkdir()
    (folder / "finished" / "summary.json").write_text("{}")
    raw = folder / "damaged" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"garbage")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"garbage")
    return folder
