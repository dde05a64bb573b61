import pytest

from .in_threads import Ranks


@pytest.fixture(scope="module")
def ranks():
    with pytest.MonkeyPatch.context() as patch:
        own = Ranks(patch)
        yield own
        own.close()
