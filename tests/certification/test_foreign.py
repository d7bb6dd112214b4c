"""Schedulers of diffusers' kind, written out here, through the adapter: what they keep passes, the rest is said.

The public ones go through it in tests/parity, which needs diffusers.
"""

import types

import pytest
import torch

from sfumato.certification import Foreign, certify
from sfumato.certification.foreign import levels_of
from sfumato.errors import SfumatoError

F64 = torch.float64


class Euler:
    """dz = eps d(sigma) on x + sigma eps; `order` 2 is Heun's, `miss` a wrong step, `rounded` a table in float32."""

    def __init__(self, order=1, miss=0.0, rounded=False, flow=False):
        self.order, self.miss, self.rounded = order, miss, rounded
        self.config = types.SimpleNamespace(
            use_flow_sigmas=flow, prediction_type="flow_prediction" if flow else "epsilon"
        )
        if rounded:
            betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32)
            self.alphas_cumprod = torch.cumprod(1 - betas, 0)

    def set_timesteps(self, steps):
        high, low = (1.0, 0.0) if self.config.use_flow_sigmas else (80.0, 0.002)
        nodes = torch.linspace(0, 1, steps + 1, dtype=F64)
        sigmas = high + nodes * (low - high) if self.config.use_flow_sigmas else high * (low / high) ** nodes
        if self.rounded:
            table = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
            sigmas = table[torch.linspace(999, 0, steps + 1).long()].to(torch.float32)
        self.nodes, self.place, self.first = sigmas, 0, None
        # Heun calls twice a step, at its start and at its end
        calls = [0, *(i for i in range(1, steps) for _ in range(self.order)), *[steps] * (self.order - 1)]
        self.sigmas = torch.cat((sigmas[calls], sigmas[-1:]))
        self.timesteps = torch.arange(len(calls), dtype=F64)

    @property
    def state_in_first_order(self):
        return self.first is None

    def step(self, output, t, z):
        here, there = (float(s) for s in self.nodes[self.place : self.place + 2])
        h = (there - here) * (1 + self.miss)
        if self.first is not None:
            z, output = self.first[0], (self.first[1] + output) / 2
            self.first, self.place = None, self.place + 1
        elif self.order == 2:
            self.first = (z, output)
        else:
            self.place += 1
        return types.SimpleNamespace(prev_sample=z + h * output)


@pytest.mark.parametrize(("kind", "order", "calls"), [({}, 1, "K"), ({"order": 2}, 2, "2 K"), ({"flow": True}, 1, "K")])
def test_what_a_scheduler_keeps_passes(kind, order, calls):
    found = certify(Foreign(lambda: Euler(**kind), order=order), quick=True)
    assert found.passed, found.faults
    assert found.findings[0].calls == calls and found.findings[0].order == pytest.approx(order, abs=0.15)


def test_an_order_one_fault_is_flagged():
    found = certify(Foreign(lambda: Euler(), order=2), quick=True)
    assert not found.passed and "declared 2" in " ".join(found.faults)


def test_steps_that_miss_their_levels_are_flagged():
    assert not certify(Foreign(lambda: Euler(miss=0.02), order=1), quick=True).passed


def test_a_scheduler_that_is_used_again_keeps_its_levels():
    """Its sigmas are made of a table that the adapter raises to float64: of the same one at every call."""
    adapter = Foreign(Euler(rounded=True))
    first, again = (levels_of(adapter._ready(20)) for _ in range(2))
    assert first == again


def test_what_is_no_scheduler_is_named():
    with pytest.raises(SfumatoError, match="set_timesteps"):
        Foreign(object())
    with pytest.raises(SfumatoError, match="space"):
        Foreign(Euler(), space="edm")
    with pytest.raises(SfumatoError, match="heard"):
        Foreign(Euler(), heard="nothing")
