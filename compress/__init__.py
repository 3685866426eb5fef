"""compress: prune, distill, quantize and export a language model, and prove what it cost.

    import compress

    pipeline = compress.load_pipeline("pipelines/quickstart.yaml")
    record = compress.run(pipeline)
    print(record.step("int4").measurements)

Every command of the console script is one function here.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "collect_garbage",
    "compare",
    "doctor",
    "export_student",
    "find_run",
    "load_pipeline",
    "make_plan",
    "pipeline_schema",
    "run",
    "scaffold",
    "write_report",
]

if TYPE_CHECKING:
    from compress.api import (
        collect_garbage,
        compare,
        doctor,
        export_student,
        find_run,
        load_pipeline,
        make_plan,
        pipeline_schema,
        run,
        scaffold,
        write_report,
    )


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `import compress` costs nothing."""
    if name in __all__:
        from compress import api

        return getattr(api, name)
    raise AttributeError(f"module 'compress' has no attribute '{name}'")
