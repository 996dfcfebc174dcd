"""The house that the acceptance tests of one module share. Each test gets it whole again, and uses its own buyers and products."""

import pytest

from gaekju_house import House, STOREFRONTS
from gateway import Gateway
from shop import Shop
from stubs import ROOT

# Those that take minutes, longest first: a worker takes a file at a time, and none should begin with one of these at the end.
LONG = ["test_funshop", "test_up", "test_tshop", "test_mealkit", "test_myshop", "test_fashion", "test_kakao", "test_up_gateway",
        "test_gate", "test_python_context", "test_replicas", "test_storefronts_live", "test_fashion_web", "test_order_api"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="module")
def module_house(request, cluster, tmp_path_factory):
    """With Fashion and its variants, and the shops that the module SELLS."""
    sold = [ROOT / "storefronts" / f"{shop}.textproto" for shop in getattr(request.module, "SELLS", ())]
    with House(cluster, tmp_path_factory.mktemp("house"), storefronts=[*STOREFRONTS, *sold]) as house:
        house.start()
        yield house


@pytest.fixture(scope="module")
def gateway(request, module_house):
    """The web addresses of what the module SELLS."""
    with Gateway(module_house, shops=request.module.SELLS) as running:
        yield running


@pytest.fixture
def house(module_house):
    if module_house.heal():
        # Callers of a context that was away find it again within a second; a test begins when they all have.
        probe = Shop(module_house, "fashion-direct")
        probe.buy(probe.buyer(), probe.product())
    return module_house


@pytest.fixture
def fashion(house):
    """The Fashion shop as it is sold."""
    return Shop(house, "fashion")


@pytest.fixture
def by_hand(house):
    """Fashion whose owner accepts orders, and confirms cancels, in person."""
    return Shop(house, "fashion-by-hand")


@pytest.fixture
def direct(house):
    """Fashion's Req/Resp variant: the buyer waits for the delivery too."""
    return Shop(house, "fashion-direct")
