"""Chaos as a test: see chaos.py. Prints the seed; GAEKJU_CHAOS_SEED repeats one, GAEKJU_CHAOS_SECONDS lengthens it."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import pytest

import chaos


@pytest.mark.timeout(400)
def test_kills_and_wipes_under_load_lose_double_and_strand_nothing(cluster, tmp_path):
    seed = os.environ.get("GAEKJU_CHAOS_SEED")
    verdict = chaos.run(cluster, tmp_path, seconds=float(os.environ.get("GAEKJU_CHAOS_SECONDS", "40")),
                        seed=int(seed) if seed else None)
    print(verdict)
    assert verdict.good(), verdict.explain()
    assert verdict.orders > 200, "too little load to mean anything"
