"""Bits per character: against laws that are known."""

import math

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.diagnostics.text_bits import compressed, known_words, order0, text_bits
from symbol_cases import Independent


def test_independent_letters_have_their_entropy():
    law = torch.tensor([0.5, 0.25, 0.25])
    draw = np.random.default_rng(0)
    book = "".join(draw.choice(["a", "b", "c"], 6000, p=law.numpy()))
    source = sf.data.open([book], length=20)
    train, held = source.split(0.5)
    model = sf.Denoiser(Independent(law.double()), sf.Masked(sf.schedules.Flow(), 3), spec=sf.data.DataSpec.fit(source))
    found = text_bits(model, source, train, held, windows=150)
    exact = -float(law.log2()[source.x[held].flatten().long()].mean())  # the bound is tight for independent symbols
    assert abs(found.model.value - exact) < 5 * found.model.stderr < 0.25
    assert found.windows == 150 and found.characters == 3000
    assert abs(found.order0 - exact) < 0.01 and 1.5 < found.xz < 2.5


def test_order_0_by_hand_and_what_xz_needs():
    known, unseen = torch.tensor([0, 0, 1], dtype=torch.uint8), torch.tensor([1, 2], dtype=torch.uint8)
    assert order0(known, unseen, 3) == pytest.approx((math.log2(3) + math.log2(6)) / 2)
    draw = np.random.default_rng(0)
    text = "".join(draw.choice(list("abcd"), 40_000))
    assert 2 < compressed(text) < 2.5 and compressed("ab" * 20_000) < 0.1


def test_the_share_of_words_that_are_known():
    assert known_words(["To be, or n't to-be ", "Zounds'd 12"], "TO be or not") == pytest.approx(5 / 7)
    assert known_words(["... 12"], "not") == 0
