"""torchrun, but dying with the worker that started it: ``python -m compress.engine.agent PARENT ARGUMENT...``."""

import sys

from compress.engine.forkserver import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    from torch.distributed.run import main

    main(sys.argv[2:])
