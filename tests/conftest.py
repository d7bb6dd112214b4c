"""Tests and what they start use two threads: the figure that every time limit here was chosen for."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch is imported, which reads it once
