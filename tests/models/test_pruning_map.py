import json

from compress.models.pruning_map import PRUNING_MAP, Part, copy_map, read_map, write_map


def written(folder, parent, stay, **parts):
    folder.mkdir()
    write_map(parent, folder, stay, parts)
    return {kind: part.kept for kind, part in read_map(folder).parts.items()}


def test_numbers_lead_to_the_original_through_every_pruning(tmp_path):
    first = written(
        tmp_path / "first", tmp_path, [0, 2, 3],
        layers=Part([0, 2, 3], 4), hidden=Part([1, 4, 5, 9], 10), ffn=Part([[0, 1, 2], [3, 5, 7], [4, 6, 8]], 9),
        kv_groups=Part([[0, 1], [2, 3], [1, 3]], 4), heads=Part([[[0], [1]], [[1], [0]], [[0], [2]]], 3),
    )  # fmt: skip
    assert first["heads"] == [[[0], [1]], [[1], [0]], [[0], [2]]]
    second = written(
        tmp_path / "second", tmp_path / "first", [1, 2],
        layers=Part([1, 2], 3), hidden=Part([0, 2], 4), ffn=Part([[0, 2], [1, 2]], 3), kv_groups=Part([[1], [0]], 2),
    )  # fmt: skip
    assert second == {
        "layers": [2, 3], "hidden": [1, 5], "ffn": [[3, 7], [6, 8]], "kv_groups": [[3], [1]],
        "heads": [[[0]], [[0]]],
    }  # fmt: skip


def test_neurons_are_composed_inside_the_experts_that_stay(tmp_path):
    neurons = [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [0, 9]]]
    written(tmp_path / "first", tmp_path, [0, 1], expert_ffn=Part(neurons, 10))
    experts, inside = Part([[0, 2], [1, 2]], 3), Part([[[1], [0]], [[1], [0]]], 2)
    found = written(tmp_path / "second", tmp_path / "first", [0, 1], experts=experts, expert_ffn=inside)
    assert found == {"experts": [[0, 2], [1, 2]], "expert_ffn": [[[1], [4]], [[9], [0]]]}


def test_a_kind_that_stays_whole_keeps_its_numbers_sizes_and_scores(tmp_path):
    written(tmp_path / "first", tmp_path, [0, 1], hidden=Part([1, 2], 3, scores=[0.1, 0.3, 0.2]))
    written(tmp_path / "second", tmp_path / "first", [1], layers=Part([1], 2, scores=[1.0, 2.0]))
    parts = read_map(tmp_path / "second").parts
    assert parts["hidden"] == Part([1, 2], 3, [0.1, 0.3, 0.2]) and parts["layers"] == Part([1], 2, [1.0, 2.0])


def test_scores_are_those_of_the_last_pruning_of_a_kind_and_sizes_the_originals(tmp_path):
    written(tmp_path / "first", tmp_path, [0], hidden=Part([1, 2], 3, scores=[0.1, 0.3, 0.2]))
    written(tmp_path / "second", tmp_path / "first", [0], hidden=Part([1], 2, scores=[0.5, 0.6]))
    assert read_map(tmp_path / "second").parts["hidden"] == Part([2], 3, [0.5, 0.6])


def test_numbers_of_whole_kinds_are_the_models_own(tmp_path):
    written(tmp_path / "first", tmp_path, [0, 3], layers=Part([0, 3], 4))
    found = read_map(tmp_path / "first")
    assert found.kept("layers", 2) == [0, 3] and found.num_original("layers", 2) == 4
    assert found.kept("hidden", 3) == [0, 1, 2] and found.num_original("hidden", 3) == 3


def test_a_model_that_lost_nothing_has_an_empty_map_and_one_never_pruned_none(tmp_path):
    assert written(tmp_path / "whole", tmp_path, [0, 1]) == {}
    assert json.loads((tmp_path / "whole" / PRUNING_MAP).read_text()) == {}
    assert read_map(tmp_path) is None
    copy_map(tmp_path, tmp_path / "whole")
    assert read_map(tmp_path / "whole") is not None
