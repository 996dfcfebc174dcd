#!/usr/bin/env python3
"""Fails when pure code lets in I/O, a clock, randomness, a thread or a layer above it.

    purity.py ROOT [--files pure_files.txt]   # one line per mistake: file:line: what, and what to do instead
    purity.py --self-test                     # shows that each rule can fail

Read are the files of flow/, the deciders services/<ctx>/<ctx>.{h,cc} and the files of every PURE target, which the build
lists in pure_files.txt. Tests (*_test.cc) are free. Pure code may include the C++ library except FORBIDDEN_STD, ALLOWED, and of
this repository flow/ and what is pure in its own folder; check/ and sim/, which run the deciders, all that is pure.
"""

import argparse
import pathlib
import re
import sys
import tempfile

FORBIDDEN_STD = {
    "chrono": "a clock", "ctime": "a clock", "time.h": "a clock",
    "random": "randomness",
    "thread": "threads", "future": "threads", "condition_variable": "threads", "mutex": "threads",
    "shared_mutex": "threads", "semaphore": "threads", "latch": "threads", "barrier": "threads",
    "stop_token": "threads", "pthread.h": "threads",
    "fstream": "I/O", "iostream": "I/O", "filesystem": "I/O", "stdio.h": "I/O",
    "csignal": "signals", "signal.h": "signals",
}
# Everything with a folder or a .h that is not the C++ library's must match one of these.
ALLOWED = re.compile(r"""
    google/protobuf/(?!io/zero_copy_stream_impl\.h|compiler/).*
  | google/(api|rpc)/[a-z_]+\.pb\.h
  | (gaekju|io/cloudevents)/.*\.pb\.h
  | absl/(?!time/clock\.h|random/|synchronization/|flags/|log/|debugging/).*
  | (assert|stddef|stdint|string|limits|inttypes)\.h
""", re.VERBOSE)
# A failed check prints why before it aborts.
EXEMPT = {("flow/check.h", "iostream")}
FORBIDDEN_CALLS = [
    (re.compile(r"\bGetCurrentTime\s*\("), "a clock (TimeUtil::GetCurrentTime)"),
    (re.compile(r"(?<![\w.>])(?:std::|::)?time\s*\(\s*(?:nullptr|NULL|0|&)"), "a clock (time())"),
    (re.compile(r"(?<![\w.>])(?:clock_gettime|gettimeofday)\s*\("), "a clock"),
    (re.compile(r"(?<![\w.>])(?:std::|::)?s?rand\s*\("), "randomness (rand())"),
    (re.compile(r"(?<![\w.>])(?:std::|::)?getenv\s*\("), "the environment (getenv())"),
    (re.compile(r"\bstd::(?:ofstream|ifstream|fopen|system)\b"), "I/O"),
]
INCLUDE = re.compile(r'^\s*#\s*(?:include|include_next|import)\s*[<"]([^>"]+)[>"]')
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def pure_files(root, listed):
    """Paths below root that have to be pure."""
    found = set((root / "flow").glob("**/*.h")) | set((root / "flow").glob("**/*.cc"))
    for folder in (root / "services").glob("*/"):
        found |= {folder / f"{folder.name}.h", folder / f"{folder.name}.cc"}
    if listed:
        found |= {pathlib.Path(line) for line in listed.read_text().splitlines() if line}
    return sorted(path for path in found if path.exists() and not path.name.endswith("_test.cc"))


def include_mistake(header, own_folder, pure):
    """Why a pure file of own_folder may not include it, or None. `pure`: all pure files, as names."""
    if header in FORBIDDEN_STD:
        return FORBIDDEN_STD[header]
    if "/" not in header and not header.endswith(".h"):
        return None  # the C++ library
    if ALLOWED.fullmatch(header) or header.startswith("flow/"):
        return None
    if header in pure and header.rpartition("/")[0] == own_folder:
        return None
    if header in pure and own_folder in ("check", "sim"):  # they run the deciders, so they stand above them
        return None
    return "neither Protobuf, Abseil, a contract, flow/ nor a pure file of its own folder"


def mistakes(root, listed=None):
    files = pure_files(root, listed)
    pure = {str(path.relative_to(root)) for path in files}
    for path in files:
        name = path.relative_to(root)
        own_folder = "/".join(name.parts[:-1])
        text = path.read_text()
        for number, line in enumerate(text.splitlines(), 1):
            include = INCLUDE.match(line)
            why = include and include_mistake(include.group(1), own_folder, pure)
            if why and (str(name), include.group(1)) not in EXEMPT:
                yield (f"{name}:{number}: pure code includes <{include.group(1)}>: {why}. Take the value as an argument, "
                       "or move the code to runtime/ or a *_service.cc")
        # Comments and strings go, line numbers stay.
        code = COMMENT.sub(lambda match: "\n" * match.group(0).count("\n"), text)
        for number, line in enumerate(code.splitlines(), 1):
            for pattern, why in FORBIDDEN_CALLS:
                if pattern.search(line):
                    yield f"{name}:{number}: pure code reaches {why}. Take the value as an argument"


SELF_TEST_RED = [  # (file, line)
    ("flow/a.h", "#include <grpcpp/grpcpp.h>"),
    ("flow/a.cc", "#include <libpq-fe.h>"),
    ("flow/a.cc", '#include "nats/nats.h"'),
    ("flow/a.cc", "#include <nats.h>"),
    ("flow/a.cc", "#include <chrono>"),
    ("flow/a.cc", "#  include <ctime>"),
    ("flow/a.cc", "#include <time.h>"),
    ("flow/a.cc", '#include "absl/time/clock.h"'),
    ("flow/a.cc", "#include <random>"),
    ("flow/a.cc", '#include "absl/random/random.h"'),
    ("flow/a.cc", "#include <thread>"),
    ("flow/a.cc", "#include <fstream>"),
    ("flow/a.cc", "#include <sys/time.h>"),
    ("flow/a.cc", "#include <unistd.h>"),
    ("flow/a.cc", '#include "runtime/server.h"'),
    ("flow/a.cc", '#include "services/payment/payment.h"'),
    ("services/payment/payment.cc", '#include "services/store/store.h"'),
    ("services/payment/payment.h", "#include <spdlog/spdlog.h>"),
    ("services/payment/payment.cc", '#include "services/payment/payment_service.h"'),
    ("services/payment/payment_table.cc", "#include <chrono>"),  # by the list of a PURE target
    ("flow/a.cc", "auto now = google::protobuf::util::TimeUtil::GetCurrentTime();"),
    ("flow/a.cc", "auto now = std::time(nullptr);"),
    ("flow/a.cc", "int dice = rand() % 6;"),
]
SELF_TEST_GREEN = [
    ("flow/a.h", "#include <string>"),
    ("flow/a.h", '#include "absl/container/flat_hash_map.h"'),
    ("flow/a.h", '#include "absl/time/time.h"'),
    ("flow/a.h", '#include "flow/turn.h"'),
    ("flow/a.h", '#include "gaekju/order/v1/order.pb.h"'),
    ("flow/a.h", '#include "google/rpc/status.pb.h"'),
    ("flow/a.h", "#include <google/protobuf/text_format.h>"),
    ("flow/a.cc", "// time(nullptr) would be a clock"),
    ("flow/a.cc", "const Timestamp& t = order.time();"),
    ("flow/a_test.cc", "#include <random>"),
    ("services/payment/payment.cc", '#include "services/payment/payment.h"'),
    ("services/payment/payment_table.cc", '#include "services/payment/payment.h"'),
    ("services/payment/payment_service.cc", "#include <chrono>"),
]


def self_test():
    failed = 0
    for want_red, cases in ((True, SELF_TEST_RED), (False, SELF_TEST_GREEN)):
        for file, line in cases:
            with tempfile.TemporaryDirectory() as folder:
                root = pathlib.Path(folder)
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                for header in ("payment.h", "payment_service.h"):
                    (root / "services/payment").mkdir(parents=True, exist_ok=True)
                    (root / "services/payment" / header).touch()
                (root / file).write_text(line + "\n")
                listed = root / "pure_files.txt"
                listed.write_text(f"{root / file}\n" if file.endswith("_table.cc") else "")
                red = bool(list(mistakes(root, listed)))
                if red != want_red:
                    failed += 1
                    print(f"self-test: {file}: {line!r} is {'red' if red else 'green'}")
    print(f"self-test: {len(SELF_TEST_RED) + len(SELF_TEST_GREEN) - failed} of "
          f"{len(SELF_TEST_RED) + len(SELF_TEST_GREEN)} as they should be")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=pathlib.Path, help="the repository")
    parser.add_argument("--files", type=pathlib.Path, help="list of the files of PURE targets, written by the build")
    parser.add_argument("--self-test", action="store_true", help="show that each rule can fail")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    if not args.root:
        parser.error("ROOT is needed")
    root = args.root.resolve()
    read = pure_files(root, args.files)
    found = list(mistakes(root, args.files))
    for mistake in found:
        print(mistake)
    print(f"purity: {len(read)} files read, {len(found)} mistakes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
