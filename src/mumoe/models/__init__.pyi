"""The public names of mumoe.models, each with its module; imported when first used."""

from .backbones import Backbone as Backbone
from .backbones import create_backbone as create_backbone
from .gpt2 import GPT2S as GPT2S
from .gpt2 import create_gpt2 as create_gpt2
from .mixer import MIXERS as MIXERS
from .mixer import create_mixer as create_mixer
