"""What a trained model may do wrong though its loss is low: copies of its training samples."""

from sfumato.audit.copies import Memorisation, memorisation

__all__ = ["Memorisation", "memorisation"]
