"""Checks: evidence of a run or a model -> findings, each under a code that has a page in docs/faults."""

from sfumato.diagnostics.checks.evidence import Evidence as Evidence
from sfumato.diagnostics.checks.evidence import Sample as Sample
from sfumato.diagnostics.checks.evidence import Weights as Weights
from sfumato.diagnostics.checks.examine import CHECKS as CHECKS
from sfumato.diagnostics.checks.examine import Check as Check
from sfumato.diagnostics.checks.examine import examine as examine
from sfumato.diagnostics.checks.finding import CODES as CODES
from sfumato.diagnostics.checks.finding import Finding as Finding
from sfumato.diagnostics.checks.finding import Report as Report
