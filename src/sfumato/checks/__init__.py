"""Checks: evidence of a run or a model -> findings, each under a code that has a page in docs/faults."""

from sfumato.checks.check import Check as Check
from sfumato.checks.evidence import Evidence as Evidence
from sfumato.checks.evidence import Sample as Sample
from sfumato.checks.evidence import Weights as Weights
from sfumato.checks.examine import CHECKS as CHECKS
from sfumato.checks.examine import examine as examine
from sfumato.checks.finding import CODES as CODES
from sfumato.checks.finding import Finding as Finding
from sfumato.checks.finding import Report as Report
