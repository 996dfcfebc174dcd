#!/usr/bin/env python3
"""Fails when the seeded defects of the code and the table of them differ, or a program that runs has any.

    table.py ROOT            # one line per mistake
    table.py --self-test     # shows that it can fail

Every GK_MUTANT(name) of flow/, services/ and runtime/ stands once in flow/mutants.inc, and every name there once in the code. Every
program in ROOT/build/{dev,release}/app (those that are built) is searched for the names and for the switch.
"""

import pathlib
import re
import sys
import tempfile

FOLDERS = ("app", "check", "facade", "flow", "runtime", "services", "sim")
DEFECT = re.compile(r'^GK_DEFECT\((\w+),\s*"([^"]+)"\)$', re.MULTILINE)
USE = re.compile(r"\bGK_MUTANT\((\w+)\)")
COMMENT = re.compile(r"//[^\n]*")
SWITCH = b"GAEKJU_MUTANT"


def table(root):
    """name -> sentence, in the table's order."""
    return dict(DEFECT.findall((root / "flow" / "mutants.inc").read_text()))


def mistakes(root):
    text = (root / "flow" / "mutants.inc").read_text()
    known = [name for name, _ in DEFECT.findall(text)]
    if len(known) != len(re.findall(r"^GK_DEFECT", text, re.MULTILINE)):
        yield 'flow/mutants.inc: a line is not GK_DEFECT(name, "sentence")'
    for name in sorted({name for name in known if known.count(name) > 1}):
        yield f"flow/mutants.inc: {name} stands there twice"
    used = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".cc", ".h") or path.name in ("mutant.h", "chosen.cc"):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                for name in USE.findall(COMMENT.sub("", line)):
                    used.setdefault(name, []).append(f"{path.relative_to(root)}:{number}")
    for name, places in used.items():
        if name not in known:
            yield f"{places[0]}: {name} is not in flow/mutants.inc"
    for name in known:
        if name not in used:
            yield f"flow/mutants.inc: {name} is nowhere in the code"
    for program in sorted((root / "build").glob("*/app/gaekju")):
        if program.parts[-3] not in ("dev", "release"):
            continue
        content = program.read_bytes()
        for name in [*(name.encode() for name in known if "_" in name), SWITCH]:
            if name in content:
                yield f"{program.relative_to(root)}: knows the seeded defect {name.decode()}"


def self_test():
    good_table = 'GK_DEFECT(a_b, "A sentence")\nGK_DEFECT(c_d,\n          "Another")\n'
    good_code = "if (GK_MUTANT(a_b)) return;  // GK_MUTANT(unknown)\nx = y || GK_MUTANT(c_d);\n"
    cases = [
        ("good", good_table, good_code, b"", 0),
        ("unknown name", good_table, good_code + "GK_MUTANT(e_f);", b"", 1),
        ("unused name", good_table + 'GK_DEFECT(e_f, "Third")\n', good_code, b"", 1),
        ("twice", good_table + 'GK_DEFECT(a_b, "Again")\n', good_code, b"", 1),
        ("no sentence", good_table + "GK_DEFECT(e_f)\n", good_code, b"", 1),
        ("in a program", good_table, good_code, b"\0c_d\0", 1),
        ("the switch in a program", good_table, good_code, b"GAEKJU_MUTANT", 1),
    ]
    failed = 0
    for what, inc, code, program, expected in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name in ("flow", "services", "build/release/app"):
                (root / name).mkdir(parents=True)
            (root / "flow" / "mutants.inc").write_text(inc)
            (root / "services" / "x.cc").write_text(code)
            (root / "build" / "release" / "app" / "gaekju").write_bytes(program)
            found = list(mistakes(root))
            if len(found) != expected:
                print(f"{what}: expected {expected} mistakes, found {found}")
                failed = 1
    return failed


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        sys.exit(self_test())
    found = list(mistakes(pathlib.Path(sys.argv[1])))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
