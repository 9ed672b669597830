"""The runtime: super-resolution of volumes, files and folders by a trained network.

Importing it needs numpy and nibabel; an engine's library is imported when that engine is opened.
"""

from .card import CardError, ModelCard
from .errors import RunError

__all__ = ["CardError", "ModelCard", "RunError"]
