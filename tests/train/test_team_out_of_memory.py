"""A process of a team whose memory runs out ends all of it, and says what would help."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from compress.errors import StepFailed
from compress.train import step
from compress.train.objective import NextToken
from tests.train.inputs import context, parent, tokens


class RunsOut(NextToken):
    """There is memory for the first parts of batches."""

    num_calls = 0

    def forward(self, batch):
        self.num_calls += 1
        if self.num_calls > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(batch)


def member(rank: int, folder: Path, model) -> None:
    """Be one of two processes, the second of which has too little memory; leave word of how it ended."""
    torch.set_num_threads(1)
    if rank == 1:
        import compress.train.objective

        compress.train.objective.NextToken = RunsOut
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    work = context(folder / f"{rank}")
    work.partial = folder / "partial"
    work.partial.mkdir(exist_ok=True)
    config = step.Config(tokens=16 * 4 * 6, batch_tokens=16 * 4, precision="fp32")
    try:
        step.run(model, config, work)
    except StepFailed as error:
        (folder / f"{rank}.txt").write_text(f"failed: {error}")
    except Exception as error:
        (folder / f"{rank}.txt").write_text(f"alone: {error}")
    os._exit(1)  # as the engine's processes do


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_one_process_without_memory_ends_the_team_and_says_what_would_help(tmp_path):
    model = parent(tmp_path / "parent")
    tokens(tmp_path / "tokens")
    spawned = torch.multiprocessing.spawn(member, (tmp_path, model), nprocs=2, join=False)
    for process in spawned.processes:
        process.join(120)
    assert [process.exitcode for process in spawned.processes] == [1, 1], (
        "nobody waits for what will not come"
    )
    other, without = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert other.startswith("alone: ") and without.startswith(
        "failed: on one of the processes memory is too small"
    )
    assert "Tried to allocate 2 GiB" in without and "a smaller `micro_batch`, more processes" in without
