"""Certificates of solvers: their order and other promises, measured on models with exactly known solutions."""

from sfumato.certification.certificate import Certificate, Findings, summary
from sfumato.certification.examine import certify
from sfumato.certification.foreign import Foreign

__all__ = ["Certificate", "Findings", "Foreign", "certify", "summary"]
