import pytest
from huggingface_hub import constants

from compress.errors import InputError
from compress.models import hub


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("get", [hub.fetch, hub.fetch_config])
def test_without_network_the_local_folder_is_suggested(get):
    with pytest.raises(InputError, match=r"'owner/model' is not cached .* local checkpoint folder"):
        get("owner/model", "main")


@pytest.mark.parametrize("get", [hub.fetch, hub.fetch_config])
def test_a_name_that_is_none_is_explained(get):
    with pytest.raises(InputError, match="neither a folder nor a hub name like 'owner/model'"):
        get("no//name", "main")
