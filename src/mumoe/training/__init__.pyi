"""The public names of mumoe.training, each with its module; imported when first used."""

from .checkpoint import CheckpointError as CheckpointError
from .config import PRESETS as PRESETS
from .config import TrainConfig as TrainConfig
from .config import read_config as read_config
from .config import to_toml as to_toml
from .jobs import resume as resume
from .jobs import train as train
from .opening import StoredRun as StoredRun
from .signals import Interrupted as Interrupted
