"""Measure and judge a model, its data and its run: losses on fixed draws, memorisation, fault codes, reports.

Reading order: `bins` and `draws` (fixed noise levels, noise and samples), `gradients`, `samples`, `board`,
`information`, `triples` and `validation`, `nearest` and `memorization`, `answers`, `hypotheses`, and `checks`, which
judge all of it; then the output for people: `summary` (report.json), `report` (report.html), `board_page`, `plots`.
"""
