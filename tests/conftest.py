"""What every test stands on: two threads, the figure that the time limits were chosen for, and no chance."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch is imported, which reads it once

settings.register_profile("sfumato", deadline=None, derandomize=True)
settings.load_profile("sfumato")
