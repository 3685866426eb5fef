"""Checkpoints from the Hugging Face hub: the files a model needs and no others, pinned to a commit."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.errors import HubUnavailable, InputError
from compress.models.layout import Config
from compress.models.pruning_map import PRUNING_MAP
from compress.models.shards import INDEX
from compress.models.spec import TOKENIZER_FILES, read_config

FILES = ("*.safetensors", INDEX, "config.json", "generation_config.json", PRUNING_MAP, *TOKENIZER_FILES)


def fetch(id: str, revision: str) -> tuple[Path, str]:
    """Download a model (or find it in the hub's cache); return its folder and the commit it is at.

    Raises `InputError` when the hub does not have the model, `HubUnavailable` when it cannot be reached or does not
    give it to this user.
    """
    folder = _snapshot(id, revision, FILES)
    return folder, folder.name


def fetch_config(id: str, revision: str) -> tuple[Config, str]:
    """Download only ``config.json``; return it and the commit it is at. Raises as `fetch` does."""
    folder = _snapshot(id, revision, ("config.json",))
    return read_config(folder), folder.name


def _snapshot(id: str, revision: str, files: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(id, revision):
        return Path(snapshot_download(id, revision=revision, allow_patterns=list(files)))


@contextmanager
def _explained(id: str, revision: str) -> Iterator[None]:
    """Turn the hub's errors into what the user can do about them."""
    from huggingface_hub import errors

    local = "or give a local checkpoint folder"
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubUnavailable(
            f"'{id}' is gated: accept its terms on https://huggingface.co/{id} and set HF_TOKEN, {local}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"the hub has no model '{id}' (for a private one set HF_TOKEN), {local}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"'{id}' has no revision '{revision}'") from error
    except errors.HFValidationError as error:
        raise InputError(f"'{id}' is neither a folder nor a hub name like 'owner/model'") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise HubUnavailable(
            f"'{id}' is not cached and the hub cannot be reached: go online, {local}"
        ) from error
