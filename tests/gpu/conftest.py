import pytest

from tests.support.pretend_cuda import PretendCuda


@pytest.fixture
def gpu():
    """A machine with one GPU, pretended: the test runs inside; see `PretendCuda`."""
    with PretendCuda() as pretended:
        yield pretended
