"""Certificates of solvers: what they promise, measured on models whose every quantity is known."""

from sfumato.certification.certificate import Certificate, Findings, summary
from sfumato.certification.examine import certify
from sfumato.certification.foreign import Foreign

__all__ = ["Certificate", "Findings", "Foreign", "certify", "summary"]
