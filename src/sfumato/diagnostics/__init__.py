"""What a model, its data and its run are like: figures on fixed draws, verdicts, and faults under codes.

In reading order: `bins` and `draws` (fixed noise levels, noise and samples), `gradients`, `law`, `samples`, `board`,
`information`, `nearest`, `memorization`, `answers`, `hypotheses`, and `checks`, which judge all of it.
"""
