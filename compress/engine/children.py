"""What was done for a step as a result of its own, as its record tells it."""

from typing import Literal

from compress.engine.store import Store
from compress.records import ChildRecord, ModelSpec


def child_record(store: Store, key: str, how: Literal["prepared", "submitted"]) -> ChildRecord:
    """Return the account of a committed artifact that was made for a step. Curves are left out: they are long."""
    manifest = store.manifest(key)
    spec = manifest["spec"]
    return ChildRecord(
        use=manifest["use"],
        settings=manifest["ingredients"]["settings"],
        key=key,
        seconds=manifest["seconds"],
        how=how,
        facts={name: value for name, value in manifest["facts"].items() if name != "curve"},
        warnings=manifest["warnings"],
        realized=ModelSpec.model_validate(spec).size if spec else None,
    )
