"""`gaekju check`: a storefront is proved, or told how it breaks. Needs no database and no bus."""

import pathlib
import re
import subprocess

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
    assert re.search(r"proved with up to 2 faults.* [1-9]\d* states, ", done.stdout), done.stdout


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


def test_too_few_states_is_no_proof():
    done = check("--states_max=100", STOREFRONTS / "fashion.textproto")
    assert done.returncode == 1
    assert "not proved: nothing found, but there are more states" in done.stdout
