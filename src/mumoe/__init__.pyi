"""The public names of mumoe, each with its module; imported when first used."""

from . import costs as costs
from . import functional as functional
from .analysis.analyzing import analyze as analyze
from .analysis.sweeping import sweep as sweep
from .api import Job as Job
from .api import Run as Run
from .api import load as load
from .api import resume as resume
from .api import train as train
from .baselines import HighRankLinear as HighRankLinear
from .baselines import SparseMoE as SparseMoE
from .decomposition.opened import Decomposition as Decomposition
from .decomposition.opened import decompose as decompose
from .deploy.formats import export as export
from .deploy.model import ImageClassifier as ImageClassifier
from .editing.expert_edits import Ablate as Ablate
from .editing.expert_edits import Correct as Correct
from .editing.expert_edits import Rewrite as Rewrite
from .editing.expert_edits import Scale as Scale
from .editing.expert_edits import SetOutput as SetOutput
from .editing.expert_edits import Swap as Swap
from .editing.stack import EditStack as EditStack
from .errors import JobError as JobError
from .errors import UserError as UserError
from .factorizations import Factorization as Factorization
from .factorizations import register_factorization as register_factorization
from .gating import Gate as Gate
from .gating import register_gate as register_gate
from .layers import MuMoE as MuMoE
from .layers import MuMoEBlock as MuMoEBlock
from .layers import MuMoEGatedBlock as MuMoEGatedBlock
from .models.surgery import replace_head as replace_head
from .models.surgery import replace_modules as replace_modules

__version__: str
