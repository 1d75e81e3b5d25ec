"""What every test shares: no network, one thread in each of several workers, the same examples every time."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that share cores must not share threads too

settings.register_profile("tutelage", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tutelage")
