"""What a search records, as the quickstart's `narrow` would: made up, in the shape of a real one."""

from typing import Any

from compress.records import ChildRecord, RunRecord
from tests.report.sample_run import sample_run, with_step

SIZES = ("layers", "hidden_size", "intermediate_size", "num_key_value_heads")


def candidate(sizes: tuple[int, ...], predicted: float, divergence: float, **more: Any) -> dict[str, Any]:
    count = 331_776 * sizes[0] + 7 * sum(sizes)
    return {
        "sizes": dict(zip(SIZES, sizes, strict=True)),
        "cost": float(count),
        "num_parameters": count,
        "predicted": predicted,
        "divergence": divergence,
        "error": 0.06 * divergence,
        "recovered": None,
        "recovered_error": None,
        "is_even": False,
        "is_chosen": False,
        **more,
    }


def search_facts(**changes: Any) -> dict[str, Any]:
    probed = {
        "layers": (8, {6: 0.0606, 5: 0.12, 3: 0.437}),
        "hidden": (256, {224: 0.0926, 160: 0.462, 128: 0.806}),
        "ffn": (768, {576: 0.0107, 384: 0.0485, 192: 0.197}),
        "kv_groups": (4, {2: 0.327, 1: 0.737}),
    }
    probes = [
        {"axis": axis, "whole": whole, "size": size, "divergence": value, "error": 0.07 * value}
        for axis, (whole, sizes) in probed.items()
        for size, value in sizes.items()
    ]
    found = {
        "cost": "params",
        "budget": 2_450_000.0,
        "whole": 2_836_416.0,
        "compared_with": "parent",
        "refitted_on_tokens": 8192,
        "shapes": 2331,
        "probes": probes,
        "candidates": [
            candidate((6, 192, 640, 3), 0.402, 0.469, is_even=True),
            candidate((6, 256, 320, 4), 0.145, 0.164),
            candidate((7, 256, 256, 4), 0.163, 0.158, is_chosen=True),
            candidate((5, 256, 448, 4), 0.166, 0.184),
        ],
    }
    return {**found, **changes}


def searched_run(**changes: Any) -> RunRecord:
    """The quickstart with its `narrow` found by a search."""
    settings = {"tokens": 131_072, "shapes": [{"ffn": 576}]}
    work = tuple(
        ChildRecord(use=use, how=how, settings=settings, key=f"{use}-key", seconds=12.3)
        for use, how in (("prune.scores", "prepared"), ("prune.probe", "submitted"))
    )
    facts = {"layers": 7, "search": search_facts(**changes)}
    return with_step(sample_run(), "narrow", use="prune.search", facts=facts, children=work, is_about=True)


def recovered(search: dict[str, Any], *divergences: float) -> dict[str, Any]:
    """The search with its candidates distilled before they were judged, the best of them chosen."""
    tried = [
        {**each, "recovered": value, "recovered_error": 0.05 * value, "is_chosen": value == min(divergences)}
        for each, value in zip(search["candidates"], divergences, strict=True)
    ]
    return {**search, "candidates": tried, "compared_with": "teacher"}
