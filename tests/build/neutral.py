#!/usr/bin/env python3
"""Fails when C++ knows a shop by its name: shops are data, and only the facade's adapters and tests may say which there are.

    neutral.py ROOT          # one line per mistake: file:line: what
    neutral.py --self-test   # shows that it can fail

The names are those of ROOT/storefronts/*.textproto. Read are the C++ files of FOLDERS, comments too; tests (*_test.cc, testing/) are
free.
"""

import argparse
import pathlib
import re
import sys
import tempfile

FOLDERS = ("app", "check", "flow", "runtime", "services")


def names(root):
    return sorted(path.stem for path in (root / "storefronts").glob("*.textproto"))


def sources(root):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".cc", ".h") and not path.name.endswith("_test.cc") and "testing" not in path.parts:
                yield path


def mistakes(root):
    found = names(root)
    if not found:
        yield "storefronts/: there are no storefronts, so that nothing could be found"
        return
    # Of a word: "fashionable" is none, "kFashion" and "fashion_items" are.
    pattern = re.compile(rf"(?<![a-z])({'|'.join(map(re.escape, found))})(?![a-z])", re.IGNORECASE)
    for path in sources(root):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for match in pattern.finditer(re.sub(r"([a-z])([A-Z])", r"\1 \2", line)):
                yield (f"{path.relative_to(root)}:{number}: knows the storefront \"{match.group(1).lower()}\". What is its own "
                       "belongs into storefronts/ or the facade")


SELF_TEST = [  # file, line, whether it is a mistake
    ("app/seed.cc", 'item.set_storefront("pens");', True),
    ("flow/saga.cc", "// as in pens", True),
    ("services/store/store.h", "inline constexpr int kPensMax = 3;", True),
    ("runtime/testing/shop.cc", 'Run("pens");', False),
    ("runtime/bus_test.cc", 'Run("pens");', False),
    ("facade/pens.cc", 'Run("pens");', False),
    ("app/up.md", "pens", False),
    ("check/explorer.cc", "dispenser", False),
    ("check/explorer.cc", "pension", False),
]


def self_test():
    failed = 0
    for file, line, want in SELF_TEST:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "storefronts").mkdir()
            (root / "storefronts" / "pens.textproto").touch()
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(line + "\n")
            if bool(list(mistakes(root))) != want:
                failed += 1
                print(f"self-test: {file}: {line!r} is {'green' if want else 'red'}")
    print(f"self-test: {len(SELF_TEST) - failed} of {len(SELF_TEST)} as they should be")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=pathlib.Path, help="the repository")
    parser.add_argument("--self-test", action="store_true", help="show that it can fail")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    if not args.root:
        parser.error("ROOT is needed")
    root = args.root.resolve()
    found = list(mistakes(root))
    for mistake in found:
        print(mistake)
    print(f"neutral: {', '.join(names(root))} looked for in {len(list(sources(root)))} files, {len(found)} mistakes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
