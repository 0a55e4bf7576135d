"""The tiny trained runs of the deploy tests, for the verbs that take a run."""

from deploy.conftest import attribute_run, features_run, run

__all__ = ["attribute_run", "features_run", "run"]
