import os

import pytest

# The tests' tensors are tiny: a second thread would only be waited for. Set before torch is loaded, so that the scripts
# which tests start in processes of their own get it too.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch
    torch.set_num_threads(1)
