"""Which machine work is planned for: cards by name, cards of this machine, and what CUDA would show of them."""

import re

import pytest

from compress import accelerators, nvml
from compress.accelerators import Listing, built_for_cuda, cards_to_compute_on, visible
from compress.cards import SHIPPED, USERS, Card, card_called, cards_named, read_table, table
from compress.environment import device_class, hardware_fingerprint
from compress.errors import InputError
from compress.machine import (
    Machine,
    describe,
    is_elsewhere,
    machine_named,
    planned_machine,
    planning_for,
    this_machine,
)
from compress.nvml import Seen

H100 = Seen("NVIDIA H100 80GB HBM3", 85520809984, "GPU-aa11")
OTHER = H100._replace(uuid="GPU-aa22")
PART = Seen("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 << 30, "MIG-1", is_part=True)


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def has(monkeypatch):
    """Give the machine cards, and a torch that was built for them or not."""

    def give(*cards, cuda=True):
        monkeypatch.setattr(accelerators, "listing", lambda: Listing(cards, "NVML"))
        monkeypatch.setattr(accelerators, "torch_has_cuda", lambda: cuda)

    return give


# The table


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA B200", "b200"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "a100-40gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "6000-ada"),
        ("NVIDIA GeForce RTX 5090", "5090"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA GeForce RTX 3090", "3090"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A1000", None),
        ("Quadro K2000", None),
    ],
)
def test_a_card_is_known_by_what_its_driver_calls_it(driver, name):
    found = card_called(driver)
    assert (found and found.name) == name


def test_no_name_of_a_driver_fits_two_cards_of_which_neither_is_the_rest():
    names = ["NVIDIA L40S", "NVIDIA L4", "NVIDIA A10G", "NVIDIA A100 80GB PCIe", "NVIDIA H200", "Tesla T4"]
    for name in names:
        fit = [key for key, entry in table().items() if any(re.search(p, name) for p in entry.matches)]
        assert len(fit) == 1


@pytest.mark.parametrize("name", table())
def test_the_rates_of_every_card_are_those_of_a_card(name):
    card, count = cards_named(name)
    assert count == 1
    assert 14 * 10**9 < card.memory_bytes < 300 * 10**9
    assert 8e12 <= card.bf16_flops_per_second < 3e15
    assert 2e11 < card.memory_bytes_per_second < 1e13
    assert 1e10 < card.link_bytes_per_second < card.memory_bytes_per_second


def test_memory_is_what_the_driver_reports_not_what_is_sold():
    assert cards_named("h100-80gb")[0].memory_bytes == 85520809984
    assert cards_named("h200")[0].memory_bytes == 143771 * 2**20


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("h100-80gb", "h100-80gb", 1),
        ("8xh100-80gb", "h100-80gb", 8),
        ("16xH100-80GB", "h100-80gb", 16),
        ("RTX 4090", "4090", 1),
        ("2xNVIDIA GeForce RTX 3090", "3090", 2),
        ("NVIDIA H100 80GB HBM3", "h100-80gb", 1),
        ("Tesla T4", "t4", 1),
    ],
)
def test_one_card_or_several_are_named(text, name, count):
    card, number = cards_named(text)
    assert (card.name, number) == (name, count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h10-80gb", "no card is called 'h10-80gb'; did you mean 'h100-80gb'?"),
        ("a100", "did you mean 'a100-80gb' or 'a100-40gb'?"),
        ("8xh101", "no card is called '8xh101'"),
        ("0xh200", "'0xh200': 0 cards. Allowed: 1 to 4096"),
        ("", "no card is called ''"),
    ],
)
def test_another_name_is_refused_with_the_nearest(text, said):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        machine_named(text)
    assert "Allowed: " in str(error.value)


OWN = "{memory_mib: 98304, bf16_tflops: 100, memory_gb_per_second: 1000, link_gb_per_second: 50, matches: [MyCard]}"


def test_a_card_of_ones_own_is_added_by_a_file(tmp_path):
    (tmp_path / USERS).write_text(f"mine-96gb: {OWN}\n4090: {OWN}\n")
    mine, _ = cards_named("mine-96gb")
    assert mine == Card(
        name="mine-96gb",
        memory_bytes=96 << 30,
        bf16_flops_per_second=1e14,
        memory_bytes_per_second=1e12,
        link_bytes_per_second=5e10,
    )
    assert cards_named("4090")[0].memory_bytes == 96 << 30
    assert card_called("Some MyCard") == mine
    assert cards_named("h200")[0].name == "h200"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine: [1", "is not valid YAML"),
        ("[1]", "must hold cards by name"),
        (f"Mine: {OWN}", "Mine: a name is lower case"),
        (f"8xmine: {OWN}", "8xmine: a name that begins with a number and x"),
        ("mine: {memory_mib: 5}", "mine.bf16_tflops: is missing"),
        (
            f"mine: {OWN[:-1]}, memory_gib: 5}}",
            "mine.memory_gib: no such setting; did you mean 'memory_mib'?",
        ),
        (
            OWN.join(("mine: ", "")).replace("98304", "'96GB'"),
            "mine.memory_mib: Input should be a valid integer",
        ),
        (
            OWN.join(("mine: ", "")).replace("98304", "-1"),
            "mine.memory_mib: Input should be greater than or equal to 1024, found -1",
        ),
        (OWN.join(("mine: ", "")).replace("[MyCard]", "['(']"), "'(' is no regular expression"),
        ("mine: 5", "mine: "),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_place(text, said, tmp_path):
    (tmp_path / USERS).write_text(text)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        cards_named("h200")
    assert str(tmp_path / USERS) in str(error.value)


def test_the_shipped_table_says_where_its_figures_are_from():
    assert read_table(SHIPPED)
    assert "datasheets" in SHIPPED.read_text() and "nvidia-smi" in SHIPPED.read_text()


# What CUDA shows


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (None, (H100, OTHER)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0", (H100,)),
        ("1,0", (OTHER, H100)),
        ("1, 0", (OTHER, H100)),
        ("0,-1,1", (H100,)),
        ("7", ()),
        ("0,0", ()),
        ("GPU-aa22", (OTHER,)),
        ("GPU-aa2", (OTHER,)),
        ("GPU-aa", ()),
        ("GPU-bb", ()),
    ],
)
def test_hidden_cards_are_not_computed_on(setting, shown):
    assert visible((H100, OTHER), setting) == shown


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (None, (PART,)),
        ("MIG-1", (PART,)),
        ("MIG-2", (PART._replace(uuid="MIG-2"),)),
        ("MIG-2,MIG-1", (PART._replace(uuid="MIG-2"),)),
        ("MIG-GPU-aa11/1/0", (PART,)),
        ("MIG-3", ()),
    ],
)
def test_of_the_parts_of_a_card_a_process_gets_one(setting, shown):
    assert visible((PART, PART._replace(uuid="MIG-2")), setting) == shown


def test_cards_known_by_their_device_files_are_counted_by_uuid_too():
    assert len(visible((Seen("NVIDIA card"), Seen("NVIDIA card")), "GPU-aa,GPU-bb")) == 2


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = None", False),
        ("cuda: Optional[str] = '13.0'", True),
        ("cuda = '12.8'", True),
        ("cuda = None", False),
        ("hip = None", True),
    ],
)
def test_a_torch_without_cuda_is_known_from_its_text(line, cuda, tmp_path):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n")
    assert built_for_cuda(tmp_path / "version.py") is cuda
    assert built_for_cuda(tmp_path / "not there.py")


def test_the_torch_that_is_installed_is_told_from_without():
    import torch

    accelerators.torch_has_cuda.cache_clear()
    assert accelerators.torch_has_cuda() == (torch.version.cuda is not None)


def test_results_are_keyed_by_the_cards_that_torch_computes_on(has, monkeypatch):
    has(H100, OTHER)
    assert device_class() == "NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3"
    assert hardware_fingerprint().endswith(device_class())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert device_class() == "NVIDIA H100 80GB HBM3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_class() == "cpu"


def test_a_card_that_the_installed_torch_cannot_use_is_no_card(has):
    has(H100, cuda=False)
    assert (device_class(), this_machine(), cards_to_compute_on()) == ("cpu", Machine(), ())


# Who tells


@pytest.fixture
def folders(monkeypatch, tmp_path):
    def fail():
        raise nvml.NvmlError("NVML is not there (so it is)")

    monkeypatch.setattr(accelerators, "seen_by_nvml", fail)
    monkeypatch.setattr(accelerators, "PROC", tmp_path / "proc")
    monkeypatch.setattr(accelerators, "DEVICES", tmp_path / "dev")
    accelerators.listing.cache_clear()
    yield tmp_path
    accelerators.listing.cache_clear()


def test_without_nvml_the_folder_of_the_driver_tells(folders):
    for index in range(2):
        card = folders / "proc" / f"0000:0{index}:00.0"
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t NVIDIA L4\nIRQ:   \t 1\nGPU UUID: \t GPU-{index}\n")
    seen = (Seen("NVIDIA L4", None, "GPU-0"), Seen("NVIDIA L4", None, "GPU-1"))
    found = Listing(seen, str(folders / "proc"), "NVML is not there (so it is)")
    assert accelerators.listing() == found


def test_without_that_too_the_device_files_count(folders):
    (folders / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia0junk"):
        (folders / "dev" / name).touch()
    assert [card.name for card in accelerators.listing().cards] == ["NVIDIA card"] * 2


def test_where_nothing_is_there_is_no_card(folders):
    assert accelerators.listing() == Listing((), "", "NVML is not there (so it is)")


# This machine, and others


def test_this_machine_has_the_memory_of_its_driver_and_the_rates_of_the_table(has):
    has(H100._replace(memory_bytes=80 << 30), OTHER)
    machine = this_machine()
    assert machine.card is not None and machine.num_cards == 2 and machine.kind == "gpu"
    assert machine.card.name == H100.name and machine.card.memory_bytes == H100.memory_bytes
    assert machine.card.bf16_flops_per_second == 989e12 and not machine.is_guess


def test_of_unlike_cards_the_smallest_stands_for_all(has):
    has(H100, Seen("NVIDIA L4", 24152899584, "GPU-l4"))
    card = this_machine().card
    assert card is not None and card.memory_bytes == 24152899584


def test_a_part_of_a_card_is_as_fast_as_its_share(has):
    has(PART)
    card = this_machine().card
    assert card is not None and card.memory_bytes == 40 << 30
    assert card.bf16_flops_per_second == pytest.approx(989e12 * (40 << 30) / 85520809984)


def test_a_card_of_no_table_has_its_own_memory_and_a_guessed_speed_that_is_called_a_guess(has):
    has(Seen("NVIDIA Z9", 50 << 30, "GPU-z"))
    machine = this_machine()
    assert machine.card is not None and machine.card.memory_bytes == 50 << 30 and machine.is_guess
    assert "its speed is a guess" in describe(machine)


def test_work_is_planned_for_the_machine_that_was_named_inside_the_block_only(has):
    has(cuda=False)
    h200 = machine_named("2xh200")
    assert not is_elsewhere() and planned_machine() == Machine()
    with planning_for(h200):
        assert planned_machine() == h200 and is_elsewhere()
        with planning_for(machine_named("cpu")):
            assert planned_machine() == Machine() and not is_elsewhere()
    assert planned_machine() == Machine()


def test_a_machine_is_described_with_the_memory_of_each_card():
    assert describe(machine_named("8xh100-80gb")) == "8 cards h100-80gb, 79.6 GiB each"
    assert describe(machine_named("cpu")) == "a processor alone"
    assert describe(machine_named("t4")).endswith("15.0 GiB; it has no bf16, so it computes in fp32")


@pytest.mark.parametrize("content", ["", "# none yet\n", "{}\n", "---\n"])
def test_a_table_that_is_empty_adds_nothing(content, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    assert read_table(tmp_path / "mine.yaml") == {}


@pytest.mark.parametrize("name", ["8xcpu", "2xCPU"])
def test_several_processors_are_refused_with_what_to_write(name):
    with pytest.raises(
        InputError, match=r"a processor is planned for as one machine.*Allowed: cpu; for several"
    ):
        machine_named(name)
