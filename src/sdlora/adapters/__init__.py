"""Model adapters: what differs between families, behind one interface."""

from sdlora.adapters.base import Adapter, Conditioning, Tokens, load_adapter

__all__ = ["Adapter", "Conditioning", "Tokens", "load_adapter"]
