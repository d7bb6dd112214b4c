"""What a model, its data and its run are like: figures on fixed draws, verdicts, faults under codes, and their pages.

In reading order: `bins` and `draws` (fixed noise levels, noise and samples), `gradients`, `law`, `samples`, `board`,
`information`, `triples` and `validation`, `nearest` and `memorization`, `answers`, `hypotheses`, and `checks`, which
judge all of it; then what people read: `summary` (report.json), `report` (report.html), `board_page` and `plots`.
"""
