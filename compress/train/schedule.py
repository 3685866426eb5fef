"""How a budget of tokens becomes optimizer steps, and how fast each of them learns.

Steps are whole batches and batches whole rows, each the nearest number and at least one. What is trained on is thus the
budget to within half a batch; only one of less than half a row is exceeded by more.
"""

import math
from dataclasses import dataclass

from compress.train.settings import TrainingSettings

ABOUT_STEPS = 2000
BATCH_TOKENS = (2_048, 524_288)

FEW_STEPS = 10
"""Steps over which the learning rate rises at least, where there are so many: before AdamW has seen some gradients, its
steps are as long as the rate allows in whatever direction the first batch points."""
FEW_SHARE = 3
"""No more than a third of a training is spent on that."""


@dataclass(frozen=True)
class Schedule:
    """`num_steps` steps of `batch_sequences` rows of `sequence_length` tokens."""

    num_steps: int
    batch_sequences: int
    sequence_length: int
    peak: float
    floor: float
    num_warmup_steps: int

    @classmethod
    def of(cls, settings: TrainingSettings, sequence_length: int) -> "Schedule":
        """Return the schedule nearest to the settings in whole sequences and whole batches."""
        wanted = settings.batch_tokens or batch_tokens(settings.tokens)
        batch_sequences = max(1, round(wanted / sequence_length))
        num_steps = max(1, round(settings.tokens / (batch_sequences * sequence_length)))
        return cls(
            num_steps=num_steps,
            batch_sequences=batch_sequences,
            sequence_length=sequence_length,
            peak=settings.learning_rate,
            floor=settings.learning_rate * settings.floor,
            num_warmup_steps=num_warmup_steps(settings.warmup, num_steps),
        )

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.sequence_length

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.batch_tokens

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, …: a line up to the peak, then half a cosine to the floor."""
        if step < self.num_warmup_steps:
            return self.peak * (step + 1) / self.num_warmup_steps
        falling = max(1, self.num_steps - 1 - self.num_warmup_steps)
        share = min(1.0, (step - self.num_warmup_steps) / falling)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * share))


def num_warmup_steps(share: float, num_steps: int) -> int:
    """Return in how many of the steps the learning rate rises: that share of them, a few at least; none for 0."""
    if share == 0:
        return 0
    return max(round(share * num_steps), min(FEW_STEPS, num_steps // FEW_SHARE))


def batch_tokens(tokens: int) -> int:
    """Return the batch for a budget: enough steps to follow a schedule, no larger than helps, nor than the budget."""
    low, high = BATCH_TOKENS
    return min(max(tokens // ABOUT_STEPS, low), high, tokens)
