"""Inverse problems: samples of p(x | y) for a measurement y = A(x) + noise, by a method that the caller can choose."""

from sfumato.inverse.calibration import rank_statistics as rank_statistics
from sfumato.inverse.calibration import uniformity as uniformity
from sfumato.inverse.daps import DAPS as DAPS
from sfumato.inverse.ddnm import DDNM as DDNM
from sfumato.inverse.ddrm import DDRM as DDRM
from sfumato.inverse.dps import DPS as DPS
from sfumato.inverse.editing import vary as vary
from sfumato.inverse.measurement import Measurement as Measurement
from sfumato.inverse.mmps import MMPS as MMPS
from sfumato.inverse.pigdm import PiGDM as PiGDM
from sfumato.inverse.posterior import Posterior as Posterior
from sfumato.inverse.posterior import condition_on as condition_on
from sfumato.inverse.posterior import posterior as posterior
from sfumato.inverse.posterior import way as way
from sfumato.inverse.replacement import RePaint as RePaint
from sfumato.inverse.replacement import Replacement as Replacement
from sfumato.inverse.smc import SMC as SMC
from sfumato.inverse.tmpd import TMPD as TMPD
