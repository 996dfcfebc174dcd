"""Chaos as a test: see chaos.py. Prints the seed; GAEKJU_CHAOS_SEED repeats one, GAEKJU_CHAOS_SECONDS lengthens it."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import pytest

import chaos


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victims, seconds", [(chaos.VICTIMS, 40), ([chaos.ROLLBACK] * 5, 0)], ids=["everything", "rollback"])
def test_kills_and_a_lost_bus_under_load_lose_double_and_strand_nothing(cluster, tmp_path, victims, seconds):
    seed = os.environ.get("GAEKJU_CHAOS_SEED")
    verdict = chaos.run(cluster, tmp_path, seconds=float(os.environ.get("GAEKJU_CHAOS_SECONDS", seconds)),
                        seed=int(seed) if seed else None, all_victims=victims)
    print(verdict)
    assert verdict.good(), verdict.explain()
    assert verdict.orders > 200, "too little load to mean anything"
