"""G1, G2, G3, G4, G6, G8, G9, the published losses of symbols: what each weighs beside the bound, and which are one.

On a table of 3 symbols every expectation is a sum over all states: SEDD's score entropy (2310.16834) is the path KL,
ratio matching (2211.16750) its own KL, and the two terms of D3PM (2107.03006) have one minimum, the exact belief.
"""

import torch

import sfumato as sf
from sfumato import registry
from sfumato.belief import Logits
from sfumato.objectives import SymbolObjective
from sfumato.objectives.nonequilibrium import kl


def main() -> float:
    """The largest of four residuals that are 0 by proof."""
    flow = sf.schedules.Flow()
    known = {"times": sf.times.named("uniform"), "weight": None, "seed": 0}
    for process, words in {
        sf.Masked(flow, 3): ("denoising", "masked", "mask-predict", "maskgit"),
        sf.Uniform(flow, 3): ("denoising", "nonequilibrium", "score-entropy", "d3pm", "ratio-matching", "sundae"),
    }.items():
        for word in words:
            told = SymbolObjective(process, registry.make("loss", word, known))
            what = "the bound" if told.bound else told.note or "another weight"
            print(f"{type(process).__name__:<8}{word:<16}{what}{': ' if told.same else ''}{', '.join(told.same)}")
    table = sf.exact.Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)) ** 3)
    process, t = sf.Uniform(flow, 3), 0.4
    exact = table.denoiser(process)(table.states, t)
    law = table.noised(process, t)
    shift = torch.zeros(3, 3, 3, dtype=torch.float64, requires_grad=True)
    log_h = exact.other + shift[exact.z, torch.arange(3)]
    belief = Logits(log_h + process.evidence(exact.z, t), exact.z, exact.t, process, log_h)
    pairs, x = belief.rows(torch.arange(27).repeat(27)), table.states.repeat_interleave(27, 0)
    weight = (table.probs[:, None] * table.kernel(process, 0.0, t)).flatten()
    # D3PM: the gradients of a step of the bound and of the cross entropy, at the exact belief
    step = (weight * kl(process.posterior(pairs.z, x, 0.2, t), process.bridge(pairs, 0.2))).sum()
    cross = (weight * pairs.nats(x)).sum()
    slopes = [torch.autograd.grad(each, shift, retain_graph=True)[0].abs().max() for each in (step, cross)]
    # SEDD by its own formula, and ratio matching, of a belief that is wrong and does not hear z_i
    table_of = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=law.dtype)
    wrong = process.read(table_of[exact.z.roll(1, 1), torch.arange(3)], exact.z, t)
    every = wrong.rows(torch.arange(27).repeat(27))
    q, s = process.marginal(x, t), every.ratio
    r = q / q.gather(-1, every.z[..., None])
    entropy = (process.into(every.z, t) * (s - r * s.log() + r * (r.log() - 1))).sum(-1)  # 0 at y = z
    sedd = (entropy - process.rate(every, x)).abs().max()
    own = [-(law[:, None] * each.zeta.gather(-1, exact.z[..., None])[..., 0].log()).sum() for each in (wrong, exact)]
    gap = (law[:, None, None] * exact.zeta * (exact.zeta / wrong.zeta).log()).sum()
    print(f"score entropy - path KL {float(sedd):.1e}; slopes of D3PM's terms {', '.join(f'{s:.1e}' for s in slopes)}")
    print(f"ratio matching: {float(own[0]):.3f} nats, of the exact law {float(own[1]):.3f}; KL {float(gap):.3f}")
    return max(float(sedd), abs(float(own[0] - own[1] - gap)), *map(float, slopes))


if __name__ == "__main__":
    main()
