"""What a pipeline file with wrong settings of training is told."""

import pytest

from compress.distill.divergences import chosen
from compress.errors import InputError
from compress.pipeline.schema import load_pipeline

HEAD = "version: 1\nname: small\nmodel: demo\nsteps:\n  - {name: a, use: prune, target: {params: 80%}}\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cache_teacher: 5", r"expected true, false, or settings such as \{top_k: 24\}, found 5"),
        ("cache_teacher: sure", r"expected true, false, or settings such as \{top_k: 24\}, found 'sure'"),
        ("betas: [0.9]", r"betas: expected two numbers, such as \[0\.9, 0\.95\], found 1: \[0\.9\]"),
        ("betas: [0.9, 0.9, 0.9]", r"betas: expected two numbers.* found 3"),
        ("betas: 3", "betas: expected a list, found the number 3"),
        ("divergence: {use: jsd, beta: 2}", r"divergence: jsd\.beta: must be less than 1, found 2"),
    ],
)
def test_a_wrong_setting_is_told_in_plain_words(tmp_path, setting, message):
    file = tmp_path / "small.yaml"
    file.write_text(HEAD + f"  - {{name: b, use: distill, tokens: 10k, {setting}}}\n")
    with pytest.raises(InputError, match=message):
        load_pipeline(file)


@pytest.mark.parametrize("setting", ["true", "false", "{top_k: 8}"])
def test_what_a_cache_may_be_is_taken(tmp_path, setting):
    file = tmp_path / "small.yaml"
    file.write_text(HEAD + f"  - {{name: b, use: distill, tokens: 10k, cache_teacher: {setting}}}\n")
    assert (load_pipeline(file).steps[1].config.cache_teacher is None) == (setting == "false")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use": "jsd", "beta": 2}, r"^jsd\.beta: must be less than 1, found 2$"),
        ({"use": "jsd", "beta": None}, r"^jsd\.beta: must be a number, found null$"),
        ({"use": "jsd", "beta": "much"}, r'^jsd\.beta: must be a number, found "much"$'),
        ({"use": "mixture"}, r"^mixture needs `of`$"),
        ({"use": "mixture", "of": 3}, r"^mixture\.of: must be a list, found 3$"),
        ({"use": "mixture", "of": []}, r"^mixture\.of needs 1 or more entries$"),
        ({"use": "mixture", "of": ["jsd"]}, r'^mixture\.of\.0: must be a mapping, found "jsd"$'),
    ],
    ids=str,
)
def test_wrong_settings_of_a_divergence_are_told_with_their_value(setting, message):
    with pytest.raises(ValueError, match=message):
        chosen(setting)
