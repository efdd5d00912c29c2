"""qexp: fine-tune pretrained models on sensitive data with an exact privacy guarantee."""

from qexp._core import __version__

__all__ = ["__version__"]
