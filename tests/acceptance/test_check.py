"""`gaekju check`: a storefront is proved, or told how it breaks. Needs no database and no bus."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from gaekju_house import gaekju_binary

STOREFRONTS = pathlib.Path(__file__).parents[2] / "storefronts"
SHOPS = sorted(STOREFRONTS.glob("*.textproto"))


def check(*args):
    return subprocess.run([gaekju_binary(), "check", *map(str, args)], capture_output=True, text=True, timeout=120)


def changed(tmp_path, change):
    path = tmp_path / "fashion.textproto"
    text = (STOREFRONTS / "fashion.textproto").read_text()
    new = change(text)
    assert new != text
    path.write_text(new)
    return path


@pytest.mark.parametrize("shop", SHOPS, ids=lambda path: path.stem)
def test_every_shop_that_ships_is_proved(shop):
    done = check(shop)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"proved with any number of losses.* up to 2 cancels: [1-9]\d* states, ", done.stdout), done.stdout


def test_faults_are_counted_when_bounds_are_given():
    done = check("--faults=1", "--losses=0", STOREFRONTS / "fashion.textproto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proved with up to 1 faults in all (2 repetitions, 0 losses, 2 unreachable calls, 3 crashes, 1 wiped buses)" in done.stdout
    done = check("--losses=8", STOREFRONTS / "fashion.textproto")
    assert done.returncode == 2
    assert "a bound is out of range" in done.stderr


def test_money_that_nobody_gives_back_is_a_story(tmp_path):
    done = check(changed(tmp_path, lambda text: re.sub(r'.*undo: "pay".*\n', "", text)))
    assert done.returncode == 1
    assert 'empty compensation: the order is cancelled, and "pay"' in done.stdout
    assert "1. the buyer places an order" in done.stdout
    steps = re.findall(r"^ +\d+\. ", done.stdout, re.M)
    assert len(steps) <= 12, done.stdout
    assert "KRW kept" in done.stdout


def test_a_delivery_that_goes_on_is_a_story(tmp_path):
    done = check(changed(tmp_path, lambda text: re.sub(r'.*undo: "deliver".*\n', "", text)))
    assert done.returncode in (1, 2)
    assert "deliver" in done.stdout + done.stderr


def test_a_file_that_is_no_storefront_says_where(tmp_path):
    done = check(changed(tmp_path, lambda text: text.replace("payment.Capture", "payment.Captur")))
    assert done.returncode == 2
    assert re.search(r'fashion\.textproto:\d+:\d+: step "pay": unknown call', done.stdout + done.stderr)


def test_a_budget_that_runs_out_is_no_proof():
    done = check("--states_max=100", STOREFRONTS / "fashion.textproto")
    assert done.returncode == 3
    assert "not proved: nothing found, but there is more to it: more than 100 states" in done.stdout
    assert check("--seconds_max=0.000001", STOREFRONTS / "fashion.textproto").returncode == 3


def test_a_violated_file_outweighs_one_that_is_none(tmp_path):
    wrong = changed(tmp_path, lambda text: re.sub(r'.*undo: "pay".*\n', "", text))
    assert check(tmp_path / "none.textproto", wrong, SHOPS[0]).returncode == 1
    assert check(tmp_path / "none.textproto", SHOPS[0]).returncode == 2


def test_json_is_one_object_a_file(tmp_path):
    wrong = changed(tmp_path, lambda text: re.sub(r'.*undo: "pay".*\n', "", text))
    done = check("--json", STOREFRONTS / "fashion.textproto", wrong, tmp_path / "none.textproto")
    assert done.returncode == 1
    proved, violated, invalid = map(json.loads, done.stdout.splitlines())
    assert proved["verdict"] == "proved" and proved["storefront"] == "fashion" and not proved["counted"]
    assert proved["states"] > 100 and proved["transitions"] > proved["states"] and proved["depth"] > 10
    assert violated["verdict"] == "violated" and violated["hazard"] == "empty compensation"
    assert len(violated["trace"]) == len(violated["moves"]) <= 12
    assert "payment: 1000 KRW kept" in violated["held"]
    assert invalid["verdict"] == "invalid" and "cannot read" in invalid["error"]


def test_a_story_replays_until_the_storefront_is_put_right(tmp_path):
    wrong = changed(tmp_path, lambda text: re.sub(r'.*undo: "pay".*\n', "", text))
    trace = tmp_path / "trace.json"
    told = check(f"--trace_out={trace}", wrong)
    assert told.returncode == 1

    again = check(f"--replay={trace}")
    assert again.returncode == 1, again.stdout + again.stderr
    assert "the same story" in again.stdout
    steps = re.compile(r"^ +\d+\. .*$", re.M)
    assert steps.findall(again.stdout) == steps.findall(told.stdout)

    wrong.write_text((STOREFRONTS / "fashion.textproto").read_text())
    right = check(f"--replay={trace}")
    assert right.returncode == 0, right.stdout + right.stderr
    assert re.search(r"differs at (its end|move \d+).*the storefront has changed", right.stdout), right.stdout

    assert check(f"--replay={wrong}").returncode == 2


def test_prove_goes_on_until_there_are_enough_states():
    tshop = STOREFRONTS / "tshop.textproto"
    command = [sys.executable, STOREFRONTS.parent / "check" / "prove.py", "--gaekju", gaekju_binary()]
    done = subprocess.run([*command, "--states=10000", tshop], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^tshop +any number, 2 cancels +\d+ .* proved$", done.stdout, re.M), done.stdout
    assert re.search(r"^tshop +up to 1, 2 cancels +\d+ .* proved$", done.stdout, re.M), done.stdout
    assert re.search(r"^\d{4,} states in .*: all proved$", done.stdout, re.M), done.stdout
