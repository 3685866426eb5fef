"""torchrun, but dying with the worker that started it: ``python -m compress.engine.agent PARENT ARGUMENT...``."""

import os
import sys

from compress.engine.forkserver import die_with_parent

PID = "COMPRESS_AGENT_PID"
"""The variable that tells processes whom to die with: one that is still starting may find its parent gone."""

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.environ[PID] = str(os.getpid())
    from torch.distributed.run import main

    main(sys.argv[2:])
