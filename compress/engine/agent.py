"""One machine's processes: torchrun, in surroundings that are the same on every machine.

``python -m compress.engine.agent PARENT ARGUMENT...`` ends with its parent, ``-`` for none: on other machines a person
or a cluster starts it. Told to end it asks all processes, wherever they are, to save and stop, and goes when they have.
"""

import os
import signal
import sys
from pathlib import Path

from compress.engine.variables import for_processes
from compress.processes import die_with_parent

PID = "COMPRESS_AGENT_PID"
"""The variable that tells processes whom to die with: one that is still starting may find its parent gone."""
ALONE = "-"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks for a stop. The same again, or Ctrl-C after any, ends everything at once."""


def main(parent: str, arguments: list[str]) -> None:
    """Run torchrun with `arguments`, the last of which is the job."""
    if parent != ALONE:
        die_with_parent(int(parent))
    num_processes = int(arguments[arguments.index("--nproc-per-node") + 1])
    os.environ |= for_processes(os.environ, num_processes)
    os.environ[PID] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # the others are handled here
    _stop_on_signals(Path(arguments[-1]).parent / "stop")
    from torch.distributed.run import main as torchrun

    torchrun(arguments)


def _stop_on_signals(stop: Path) -> None:
    asked: set[int] = set()

    def ask(number: int, _frame: object) -> None:
        if asked & {number} or (asked and number == signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked.add(number)
        stop.touch()

    for number in STOPS:
        signal.signal(number, ask)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
