import json
import multiprocessing

import pytest

from compress.engine.store import Store
from compress.errors import StoreCorrupted
from compress.records import ModelSpec, Outcome, TensorSpec


def commit(store, key, text="content", **about):
    with store.staging(key) as folder:
        (folder / "file").write_text(text)
        store.commit(key, folder, "text", Outcome(facts={"a": 1}), about)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def test_a_committed_artifact_comes_back_as_it_was(store):
    commit(store, "k", seconds=1.5)
    artifact = store.get("k")
    assert artifact and (artifact.path / "file").read_text() == "content"
    assert artifact.kind == "text" and artifact.facts == {"a": 1}
    assert store.manifest("k")["seconds"] == 1.5
    assert store.committed() == ["k"]


def test_the_realized_spec_survives_the_store(store):
    spec = ModelSpec(config={"x": 1}, tensors={"w": TensorSpec(shape=(2, 3), dtype="BF16")}, num_parameters=6)
    with store.staging("k") as folder:
        store.commit("k", folder, "hf", Outcome(spec=spec), {})
    assert store.get("k").spec == spec
    assert spec.weight_bytes == 12


def test_what_was_not_committed_is_not_there(store):
    with store.staging("k") as folder:
        (folder / "file").write_text("half")
    assert store.get("k") is None and store.committed() == []
    assert not folder.exists()


def test_a_folder_without_its_commit_mark_does_not_count(store):
    commit(store, "k")
    (store.folder("k") / "COMMIT").unlink()
    assert "k" not in store and store.get("k") is None


def test_changed_bytes_are_noticed(store):
    commit(store, "k")
    (store.folder("k") / "file").write_text("tampered")
    with pytest.raises(StoreCorrupted, match="Delete the folder"):
        store.get("k")


def test_a_missing_file_is_noticed(store):
    commit(store, "k")
    (store.folder("k") / "file").unlink()
    with pytest.raises(StoreCorrupted):
        store.get("k")


def test_an_artifact_may_point_elsewhere_and_is_gone_with_its_target(store, tmp_path):
    target = tmp_path / "cache"
    target.mkdir()
    with store.staging("k") as folder:
        store.commit("k", folder, "hf", Outcome(facts={"location": str(target)}), {})
    assert store.get("k").path == target
    target.rmdir()
    assert store.get("k") is None


def test_committing_drops_partial_work(store):
    store.partial("k").mkdir(parents=True)
    commit(store, "k")
    assert not store.partial("k").exists()


def test_a_committed_file_is_not_hashed_again(store, monkeypatch):
    commit(store, "k")
    monkeypatch.setattr("compress.digests.file_digest", lambda path: pytest.fail(f"{path} was read"))
    assert store.get("k")


def hold(root, ready, release):
    with Store(root).locked("k", on_wait=lambda: None):
        ready.set()
        release.wait()


def test_a_second_process_waits_for_the_lock(store):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(store.root, ready, release))
    process.start()
    ready.wait()
    waited = []

    def on_wait():
        waited.append(True)
        release.set()

    with store.locked("k", on_wait=on_wait):
        assert waited
    process.join()


def test_the_manifest_lists_the_digest_of_every_file(store):
    commit(store, "k", "content")
    manifest = json.loads((store.folder("k") / "manifest.json").read_text())
    assert list(manifest["files"]) == ["file"]
