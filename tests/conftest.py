"""One thread a test process: the suite runs in parallel, and tiny tensors are slower on two threads than on one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
