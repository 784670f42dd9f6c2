"""Model families: what differs between families, behind one interface."""

from sdlora.models.family import Conditioning, ModelFamily, Tokens, load_model

__all__ = ["Conditioning", "ModelFamily", "Tokens", "load_model"]
