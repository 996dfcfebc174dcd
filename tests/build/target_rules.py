#!/usr/bin/env python3
"""Shows that cmake/gaekju.cmake refuses what it says it refuses: configures one small wrong project per rule.

    target_rules.py ROOT GOOGLEAPIS_PROTO_DIR
"""

import pathlib
import subprocess
import sys
import tempfile

PURE_A = "gaekju_library(NAME flow_a PURE SRCS a.cc)\n"
CASES = [  # (what, part of CMake's message or None, {folder: CMakeLists.txt})
    ("nothing wrong", None, {"flow": PURE_A + "gaekju_library(NAME flow_b PURE SRCS a.cc DEPS flow_a absl::status)\n",
                             "runtime": "gaekju_library(NAME runtime_a SRCS a.cc DEPS flow_a gaekju::grpc gaekju::pq)\n"}),
    ("pure on gRPC", "flow_b is PURE but depends on gaekju::grpc",
     {"flow": "gaekju_library(NAME flow_b PURE SRCS a.cc DEPS gaekju::grpc)\n"}),
    ("pure on libpq", "flow_b is PURE but depends on PkgConfig::libpq",
     {"flow": "gaekju_library(NAME flow_b PURE SRCS a.cc DEPS PkgConfig::libpq)\n"}),
    ("pure on impure", "flow_b is PURE but depends on flow_c",
     {"flow": "gaekju_library(NAME flow_c SRCS a.cc)\ngaekju_library(NAME flow_b PURE SRCS a.cc DEPS flow_c)\n"}),
    ("pure on randomness", "absl::random_random",
     {"flow": "gaekju_library(NAME flow_b PURE SRCS a.cc DEPS absl::random_random)\n"}),
    ("upwards", "runtime_a, which is not a target",
     {"flow": "gaekju_library(NAME flow_b SRCS a.cc DEPS runtime_a)\n", "runtime": "gaekju_library(NAME runtime_a SRCS a.cc)\n"}),
    ("service on service", "no service uses another's folder",
     {"services": "add_subdirectory(pay)\nadd_subdirectory(store)\n",
      "services/pay": "gaekju_library(NAME pay SRCS a.cc)\n", "services/store": "gaekju_library(NAME store SRCS a.cc DEPS pay)\n"}),
    ("forgotten contract", "not in the SRCS", {"proto": "gaekju_proto(NAME gaekju_proto_cc SRCS a.proto)\n"}),
    ("unknown word", "does not know", {"flow": "gaekju_library(PRUE NAME flow_b SRCS a.cc)\n"}),
]


def configure(root, googleapis, folders):
    with tempfile.TemporaryDirectory() as name:
        project = pathlib.Path(name)
        (project / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(rules C CXX)\nenable_testing()\n"
            + "".join(f"include({root}/cmake/{file}.cmake)\n" for file in ("options", "dependencies", "gaekju"))
            + "".join(f"add_subdirectory({folder})\n" for folder in folders if "/" not in folder))
        for folder, text in folders.items():
            (project / folder).mkdir(parents=True, exist_ok=True)
            (project / folder / "CMakeLists.txt").write_text(text)
            (project / folder / "a.cc").write_text("")
            for proto in ("a", "b"):
                (project / folder / f"{proto}.proto").write_text('syntax = "proto3";\n')
        done = subprocess.run(["cmake", "-G", "Ninja", "-S", project, "-B", project / "build",
                               f"-DGOOGLEAPIS_PROTO_DIR={googleapis}"], capture_output=True, text=True)
        return done.returncode == 0, " ".join((done.stdout + done.stderr).split())


def main():
    root, googleapis = sys.argv[1:]
    failed = 0
    for what, expected, folders in CASES:
        accepted, said = configure(pathlib.Path(root).resolve(), googleapis, folders)
        good = accepted if expected is None else not accepted and expected in said
        print(f"{'ok  ' if good else 'FAIL'} {what}" + ("" if good else f": {said[-1500:]}"), flush=True)
        failed += not good
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
