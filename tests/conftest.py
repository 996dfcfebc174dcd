"""What every test against whole processes shares: the import path, and the logs of the house in the report of a failure."""

import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent / "acceptance")]

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and report.when == "call":
        for value in item.funcargs.values():
            house = getattr(value, "house", value)
            if hasattr(house, "logs"):
                report.sections.append(("the house's logs", house.logs()))
                break


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """One PostgreSQL for the whole session; each house has databases of its own in it."""
    from gaekju_house import Cluster, WITHOUT_FSYNC
    with Cluster(tmp_path_factory.mktemp("pg") / "cluster", WITHOUT_FSYNC) as cluster:
        yield cluster
