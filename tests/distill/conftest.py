import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from threads, and tests run beside each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
