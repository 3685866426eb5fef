import sys

import pytest
from huggingface_hub import constants, errors

from compress.data.sources import hf
from compress.errors import HubUnavailable, InputError
from compress.models import hub


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("get", [hub.fetch, hub.fetch_config])
def test_without_network_the_local_folder_is_suggested(get):
    with pytest.raises(HubUnavailable, match=r"'owner/model' is not cached .* local checkpoint folder"):
        get("owner/model", "main")


@pytest.mark.parametrize("get", [hub.fetch, hub.fetch_config])
def test_a_name_that_is_none_is_explained(get):
    with pytest.raises(InputError, match="neither a folder nor a hub name like 'owner/model'"):
        get("no//name", "main")


def response(status):
    """An answer of the HTTP library that this version of the hub's client uses."""
    http = sys.modules[errors.HTTPError.__module__.partition(".")[0]]
    request = http.Request("GET", "https://huggingface.co/owner/model")
    return http.Response(status, request=request)


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (errors.GatedRepoError("gated", response=response(403)), True),
        (errors.RepositoryNotFoundError("no such model", response=response(404)), False),
        (errors.RevisionNotFoundError("no such revision", response=response(404)), False),
        (errors.HfHubHTTPError("busy", response=response(503)), True),
        (ConnectionError("no route to host"), True),
    ],
)
def test_what_is_not_there_is_told_from_what_cannot_be_looked_up(error, is_away, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError) as raised:
        hub.fetch_config("owner/model", "main")
    assert isinstance(raised.value, HubUnavailable) is is_away
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    with pytest.raises(InputError) as raised:
        hf.digest(hf.Config(id="owner/text", revision=str(id(error))), None)
    assert isinstance(raised.value, HubUnavailable) is is_away
