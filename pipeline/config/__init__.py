"""What a user may set: everything with a documented default, checked before torch is imported."""

from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.config.toml import from_toml, read_toml, to_toml

__all__ = ["DataConfig", "ModelConfig", "RunConfig", "TrainConfig", "from_toml", "read_toml", "to_toml"]
