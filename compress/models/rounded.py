"""Models whose linear layers bitsandbytes keeps in 8 or 4 bits: what it needs to be told."""

import logging

from transformers import PreTrainedModel

ROWS_PACKED = 32
"""Rows that bitsandbytes packs together (``block_n``)."""


def quiet_int8() -> None:
    """Drop the line its 8-bit layers log at every call: that they compute in fp16, which no caller can change."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_more_than_the_cast)


def unpack_where_unfit(model: PreTrainedModel) -> None:
    """Have layers multiplied in the plain way whose shape bitsandbytes' kernel for processors with AVX-512 cannot take.

    It packs 32 rows at a time and a scale for each of their blocks (64 weights), and does not ask whether they are
    whole: it fails in the middle of a step.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            rows, columns = state.shape
            if rows % ROWS_PACKED or columns % state.blocksize:
                layer.support_avx512bf16_for_cpu = False


def _says_more_than_the_cast(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")
