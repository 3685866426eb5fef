"""Whether a training is to stop: asked between the parts of a batch, and answered alike in all of a team."""

import math

from compress.plugins import Context
from compress.train.distributed import Team
from compress.train.training import Training

ASK_SECONDS = 2.0
"""A team's processes ask each other about as often within a step: each time they wait for the slowest."""


class Stopping:
    """Asks the run whether it is being stopped.

    A signal reaches one process of a team earlier than another. All take the same number of parts of every batch, so
    they ask each other at the same ones: after every so many, a number that the leader has found from its clock.
    """

    def __init__(self, context: Context, team: Team) -> None:
        self._context, self._team = context, team
        self._every, self._passed = 1, 0

    def asked_within_step(self) -> bool:
        """Return whether to give up the step. Called between two parts of its batch."""
        if not self._team.is_launched:
            return self._context.stopping
        self._passed += 1
        return self._passed % self._every == 0 and self._any()

    def asked_after_step(self, training: Training) -> bool:
        """Return whether to stop after a step that was taken."""
        if not self._team.is_launched:
            return self._context.stopping
        parts = -(-training.batch_sequences // (self._team.size * training.numerics.micro_batch))
        every = max(1, math.ceil(ASK_SECONDS * parts / max(training.last_seconds, 1e-3)))
        stopping, leaders = self._team.sums(self._context.stopping, every if self._team.leads else 0)
        self._every, self._passed = int(leaders), 0
        return stopping > 0

    def _any(self) -> bool:
        return self._team.sums(self._context.stopping)[0] > 0
