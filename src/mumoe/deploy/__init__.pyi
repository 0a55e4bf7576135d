"""The public names of mumoe.deploy, each with its module; imported when first used."""

from .formats import ExportReport as ExportReport
from .formats import export as export
from .formats import preprocessing as preprocessing
from .model import ImageClassifier as ImageClassifier
from .predictions import Prediction as Prediction
from .predictions import explain as explain
from .predictions import predict_files as predict_files
