"""The public names of mumoe.data, each with its module; imported when first used."""

from .base import SPLITS as SPLITS
from .base import Attribute as Attribute
from .base import ImageData as ImageData
from .named import DATASETS as DATASETS
from .named import load_data as load_data
from .named import problem_summary as problem_summary
