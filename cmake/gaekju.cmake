# The functions every CMakeLists.txt of the project is written with.
#
#   gaekju_proto(NAME gaekju_proto_cc SRCS gaekju/order/v1/order.proto ...)
#   gaekju_library(NAME flow_saga PURE HDRS saga.h SRCS saga.cc DEPS gaekju_proto_cc absl::status)
#   gaekju_test(NAME flow_saga_test PURE SRCS saga_test.cc DEPS flow_saga)
#   gaekju_binary(NAME gaekju SRCS main.cc DEPS runtime_server)
#
# DEPS are targets that exist already: of the same layer or a lower one, Abseil's (absl::...), or those of
# cmake/dependencies.cmake (gaekju::grpc, gaekju::pq, ...). Everything is included from the root of the repository
# ("flow/saga.h") and generated code from the root of proto/ ("gaekju/order/v1/order.pb.h").
#
# PURE means no I/O, no clock and no randomness: such a target may depend only on PURE targets, on gaekju_proto_cc,
# Protobuf and Abseil, and its files are read by the purity test for includes that would let them in (tests/build/purity.py).

# From the lowest to the highest. A target may depend on its own layer and on those before it.
set(GAEKJU_LAYERS proto flow runtime services check sim facade app tests bench)

set(GAEKJU_GENERATED_DIR ${CMAKE_BINARY_DIR}/generated)
set(GAEKJU_DESCRIPTOR_SET ${CMAKE_BINARY_DIR}/gaekju.binpb)

# ./dev makes the venv; by hand, point these at any Python that has tests/requirements.txt installed.
if(NOT EXISTS "${GOOGLEAPIS_PROTO_DIR}/google/api/annotations.proto")
  file(GLOB venv_protos ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages)
  set(GOOGLEAPIS_PROTO_DIR "${venv_protos}" CACHE PATH
      "Folder with google/api/annotations.proto and google/rpc/status.proto" FORCE)
endif()
if(EXISTS ${CMAKE_SOURCE_DIR}/.venv/bin/python)
  set(venv_python ${CMAKE_SOURCE_DIR}/.venv/bin/python)
else()
  set(venv_python python3)
endif()
set(GAEKJU_PYTHON "${venv_python}" CACHE STRING "Python with the protobuf package, for the contract check")
if(NOT EXISTS ${GOOGLEAPIS_PROTO_DIR}/google/api/annotations.proto)
  message(FATAL_ERROR
    "google/api/annotations.proto not found under GOOGLEAPIS_PROTO_DIR ('${GOOGLEAPIS_PROTO_DIR}').\n"
    "`./dev build` installs it. By hand: python3 -m venv .venv && .venv/bin/pip install -r tests/requirements.txt,\n"
    "or install googleapis-common-protos anywhere and give -DGOOGLEAPIS_PROTO_DIR=<its site-packages>.")
endif()

add_custom_target(unit_tests)

if(GAEKJU_SANITIZE STREQUAL "thread")
  add_library(gaekju_tsan OBJECT ${CMAKE_SOURCE_DIR}/cmake/tsan_libraries.cc)
  target_link_libraries(gaekju_tsan PUBLIC absl::status absl::synchronization)
endif()

# ---------------------------------------------------------------- precompiled headers
# One target compiles each; the others reuse it. Include what you use all the same: the purity test reads the sources,
# and a build without precompiled headers (-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON) must pass.
set(pch_std <algorithm> <cstdint> <functional> <map> <memory> <optional> <string> <string_view> <unordered_map>
            <utility> <variant> <vector>)
set(pch_pure ${pch_std} <absl/container/flat_hash_map.h> <absl/status/statusor.h> <absl/strings/str_cat.h>
             <google/protobuf/descriptor.h> <google/protobuf/message.h> <google/protobuf/timestamp.pb.h>)

function(gaekju_pch name)
  cmake_parse_arguments(arg "" "" "DEPS;HEADERS" ${ARGN})
  file(WRITE ${CMAKE_BINARY_DIR}/pch/${name}.cc.in "// Exists so that a precompiled header has a target of its own.\n")
  configure_file(${CMAKE_BINARY_DIR}/pch/${name}.cc.in ${CMAKE_BINARY_DIR}/pch/${name}.cc COPYONLY)
  add_library(${name} STATIC ${CMAKE_BINARY_DIR}/pch/${name}.cc)
  target_link_libraries(${name} PRIVATE ${arg_DEPS})
  target_compile_options(${name} PRIVATE ${GAEKJU_WARNINGS})
  target_precompile_headers(${name} PRIVATE ${arg_HEADERS})
endfunction()

gaekju_pch(gaekju_pch_pure HEADERS ${pch_pure} DEPS protobuf::libprotobuf absl::statusor absl::flat_hash_map)
gaekju_pch(gaekju_pch_pure_test HEADERS ${pch_pure} <gmock/gmock.h> <gtest/gtest.h>
           DEPS protobuf::libprotobuf absl::statusor absl::flat_hash_map GTest::gmock)
gaekju_pch(gaekju_pch_shell HEADERS ${pch_pure} <grpcpp/grpcpp.h>
           DEPS gaekju::grpc absl::statusor absl::flat_hash_map)

# ---------------------------------------------------------------- contracts
# Generates messages (no gRPC stubs: the runtime serves every RPC from its descriptor) for the SRCS, which are
# relative to the calling folder, and for the google.api and google.rpc files they import, as one library. Also writes
# the descriptor set ${GAEKJU_DESCRIPTOR_SET} and checks the contracts in it (tests/contract/check_contracts.py).
function(gaekju_proto)
  cmake_parse_arguments(arg "" "NAME" "SRCS" ${ARGN})
  gaekju_require(gaekju_proto "${arg_NAME}" NAME SRCS)
  set(root ${CMAKE_CURRENT_SOURCE_DIR})

  file(GLOB_RECURSE found RELATIVE ${root} ${root}/*.proto)  # looked at when CMake runs, not in every build
  list(REMOVE_ITEM found ${arg_SRCS})
  if(found)
    list(JOIN found "\n  " found)
    message(FATAL_ERROR "These contracts are not in the SRCS of ${root}/CMakeLists.txt:\n  ${found}")
  endif()

  set(imported google/api/annotations.proto google/api/field_behavior.proto google/api/http.proto google/api/httpbody.proto
               google/rpc/code.proto google/rpc/error_details.proto google/rpc/status.proto)
  set(import_path -I${root} -I${GOOGLEAPIS_PROTO_DIR})
  foreach(dir IN LISTS Protobuf_INCLUDE_DIRS)  # google/protobuf/*.proto, where protoc does not find them by itself
    if(EXISTS ${dir}/google/protobuf/descriptor.proto)
      list(APPEND import_path -I${dir})
    endif()
  endforeach()

  set(generated)
  set(files)
  file(MAKE_DIRECTORY ${GAEKJU_GENERATED_DIR})
  foreach(proto IN LISTS arg_SRCS imported)
    if(proto IN_LIST imported)
      set(file ${GOOGLEAPIS_PROTO_DIR}/${proto})
    else()
      set(file ${root}/${proto})
    endif()
    string(REGEX REPLACE "\\.proto$" ".pb" stem ${GAEKJU_GENERATED_DIR}/${proto})
    add_custom_command(
      OUTPUT ${stem}.cc ${stem}.h  # in this order: ninja looks for the first in the dependency file
      COMMAND protobuf::protoc ${import_path} --cpp_out=${GAEKJU_GENERATED_DIR} --dependency_out=${stem}.d ${file}
      DEPENDS ${file} protobuf::protoc
      DEPFILE ${stem}.d
      COMMENT "protoc ${proto}"
      VERBATIM)
    list(APPEND generated ${stem}.cc)
    list(APPEND files ${file})
  endforeach()

  # gRPC serves its health service without Protobuf, so reflection would list it and not be able to describe it. Its contract comes
  # as a descriptor from PyPI's grpcio-health-checking, which has no .proto.
  set(health ${GAEKJU_GENERATED_DIR}/grpc_health/v1/health)
  add_custom_command(
    OUTPUT ${health}.pb.cc ${health}.pb.h
    COMMAND ${GAEKJU_PYTHON} ${CMAKE_SOURCE_DIR}/cmake/health_descriptor.py ${GAEKJU_GENERATED_DIR}/health.binpb
    COMMAND protobuf::protoc --descriptor_set_in=${GAEKJU_GENERATED_DIR}/health.binpb --cpp_out=${GAEKJU_GENERATED_DIR}
            grpc_health/v1/health.proto
    DEPENDS ${CMAKE_SOURCE_DIR}/cmake/health_descriptor.py protobuf::protoc
    COMMENT "protoc grpc.health.v1"
    VERBATIM)
  list(APPEND generated ${health}.pb.cc)

  # Whole archive: descriptors register themselves when their object file is linked, and nothing else refers to those
  # that are only reached by name (a storefront's "payment.CapturePayment").
  add_library(${arg_NAME}_objects STATIC ${generated})
  target_include_directories(${arg_NAME}_objects SYSTEM PUBLIC ${GAEKJU_GENERATED_DIR})
  target_link_libraries(${arg_NAME}_objects PUBLIC protobuf::libprotobuf)
  target_compile_options(${arg_NAME}_objects PRIVATE -w)
  add_library(${arg_NAME} INTERFACE)
  target_link_libraries(${arg_NAME} INTERFACE $<LINK_LIBRARY:WHOLE_ARCHIVE,${arg_NAME}_objects>)
  set_target_properties(${arg_NAME} PROPERTIES GAEKJU_PURE TRUE GAEKJU_LAYER proto)

  add_custom_command(
    OUTPUT ${GAEKJU_DESCRIPTOR_SET}
    COMMAND protobuf::protoc ${import_path} --include_imports --include_source_info
            --descriptor_set_out=${GAEKJU_DESCRIPTOR_SET} ${arg_SRCS}
    DEPENDS ${files} protobuf::protoc
    WORKING_DIRECTORY ${root}
    COMMENT "descriptor set gaekju.binpb"
    VERBATIM)
  set(checker ${CMAKE_SOURCE_DIR}/tests/contract/check_contracts.py)
  set(stamp ${CMAKE_BINARY_DIR}/contracts.ok)
  add_custom_command(
    OUTPUT ${stamp}
    COMMAND ${GAEKJU_PYTHON} ${checker} ${GAEKJU_DESCRIPTOR_SET}
    COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
    DEPENDS ${GAEKJU_DESCRIPTOR_SET} ${checker}
    COMMENT "contract check"
    VERBATIM)
  add_custom_target(contracts ALL DEPENDS ${GAEKJU_DESCRIPTOR_SET} ${stamp})
  add_dependencies(${arg_NAME}_objects contracts)
endfunction()

# ---------------------------------------------------------------- libraries, tests, binaries
function(gaekju_library)
  cmake_parse_arguments(arg "PURE" "NAME" "HDRS;SRCS;DEPS" ${ARGN})
  gaekju_require(gaekju_library "${arg_NAME}" NAME)
  if(arg_SRCS)
    add_library(${arg_NAME} STATIC ${arg_SRCS} ${arg_HDRS})
    gaekju_target(${arg_NAME} PUBLIC "${arg_PURE}" gaekju_pch_pure "${arg_DEPS}")
  else()
    add_library(${arg_NAME} INTERFACE ${arg_HDRS})
    gaekju_target(${arg_NAME} INTERFACE "${arg_PURE}" "" "${arg_DEPS}")
  endif()
  gaekju_list_pure_files("${arg_PURE}" ${arg_HDRS} ${arg_SRCS})
endfunction()

# One executable with GoogleTest's main, run from the root of the repository.
# LABELS: `unit` unless told. `integration` (starts PostgreSQL or nats-server) stays out of `unit_tests` and the sanitizers.
function(gaekju_test)
  cmake_parse_arguments(arg "PURE" "NAME;TIMEOUT" "SRCS;DEPS;LABELS;ENV;ARGS" ${ARGN})
  gaekju_require(gaekju_test "${arg_NAME}" NAME SRCS)
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_executable(${arg_NAME} ${arg_SRCS})
  # A test of pure code may itself use what it likes: only what it tests has to be pure.
  set(pch gaekju_pch_pure_test)
  gaekju_target(${arg_NAME} PRIVATE "${arg_PURE}" ${pch} "${arg_DEPS}")
  target_link_libraries(${arg_NAME} PRIVATE GTest::gmock_main)
  add_test(NAME ${arg_NAME} COMMAND ${arg_NAME} ${arg_ARGS} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${arg_NAME} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "GAEKJU_DESCRIPTOR_SET=${GAEKJU_DESCRIPTOR_SET};TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/cmake/tsan.supp;${arg_ENV}")
  if("unit" IN_LIST arg_LABELS)
    add_dependencies(unit_tests ${arg_NAME})
  endif()
endfunction()

function(gaekju_binary)
  cmake_parse_arguments(arg "" "NAME" "HDRS;SRCS;DEPS" ${ARGN})
  gaekju_require(gaekju_binary "${arg_NAME}" NAME SRCS)
  add_executable(${arg_NAME} ${arg_SRCS} ${arg_HDRS})
  gaekju_target(${arg_NAME} PRIVATE "" gaekju_pch_shell "${arg_DEPS}")
endfunction()

# ---------------------------------------------------------------- the rules
macro(gaekju_require function name)
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "${function}(${name}): does not know ${arg_UNPARSED_ARGUMENTS}")
  endif()
  foreach(required ${ARGN})
    if(NOT arg_${required})
      message(FATAL_ERROR "${function}(${name}): ${required} is missing")
    endif()
  endforeach()
endmacro()

# What libraries, tests and binaries have in common. `scope` is the link scope of `deps`.
function(gaekju_target name scope pure pch deps)
  gaekju_layer(layer)
  set(own_scope PUBLIC)
  if(scope STREQUAL INTERFACE)
    set(own_scope INTERFACE)
  endif()
  set_target_properties(${name} PROPERTIES GAEKJU_PURE "${pure}" GAEKJU_LAYER ${layer}
                        GAEKJU_FOLDER "${CMAKE_CURRENT_SOURCE_DIR}")
  gaekju_check_dependencies(${name} "${deps}")
  target_include_directories(${name} ${own_scope} ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} ${scope} ${deps})
  if(NOT scope STREQUAL INTERFACE)
    target_compile_options(${name} PRIVATE ${GAEKJU_WARNINGS})
    if(GAEKJU_MUTANTS)  # not for the contracts and headers, which then are those of the preset `dev`, and cached
      target_compile_definitions(${name} PRIVATE GAEKJU_MUTANTS)
    endif()
    if(pure)
      target_link_libraries(${name} PRIVATE absl::statusor absl::flat_hash_map)
    else()
      set(pch gaekju_pch_shell)
    endif()
    target_link_libraries(${name} PRIVATE Threads::Threads)
    get_target_property(type ${name} TYPE)
    if(type STREQUAL "EXECUTABLE" AND TARGET gaekju_tsan)
      target_link_libraries(${name} PRIVATE gaekju_tsan)
    endif()
    target_precompile_headers(${name} REUSE_FROM ${pch})
  endif()
endfunction()

# The layer of the calling folder: the first folder of its path.
function(gaekju_layer out)
  file(RELATIVE_PATH path ${CMAKE_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  string(REGEX REPLACE "/.*" "" layer "${path}")
  set(${out} ${layer} PARENT_SCOPE)
endfunction()

function(gaekju_check_dependencies name deps)
  get_target_property(pure ${name} GAEKJU_PURE)
  get_target_property(layer ${name} GAEKJU_LAYER)
  get_target_property(folder ${name} GAEKJU_FOLDER)
  list(FIND GAEKJU_LAYERS "${layer}" level)
  foreach(dep IN LISTS deps)
    if(NOT TARGET ${dep})
      message(FATAL_ERROR "${name} depends on ${dep}, which is not a target (yet): a typing error, or a higher layer")
    endif()
    get_target_property(dep_pure ${dep} GAEKJU_PURE)
    get_target_property(dep_layer ${dep} GAEKJU_LAYER)
    get_target_property(dep_folder ${dep} GAEKJU_FOLDER)
    if(pure AND NOT dep_pure AND NOT dep MATCHES "^(absl::|protobuf::libprotobuf|gaekju::protobuf$|GTest::)")
      message(FATAL_ERROR "${name} is PURE but depends on ${dep}, which is not: "
                          "pure code links only PURE targets, gaekju_proto_cc, Protobuf and Abseil")
    endif()
    if(pure AND dep MATCHES "^absl::(time|random_)|^GTest::" AND NOT name MATCHES "_test$")
      message(FATAL_ERROR "${name} is PURE but depends on ${dep}: a clock, a source of randomness or a test library")
    endif()
    if(dep_layer)
      list(FIND GAEKJU_LAYERS "${dep_layer}" dep_level)
      if(dep_level GREATER level)
        message(FATAL_ERROR "${name} (${layer}/) depends on ${dep} (${dep_layer}/), which is a higher layer")
      endif()
      if(layer STREQUAL "services" AND dep_layer STREQUAL "services" AND NOT folder STREQUAL dep_folder
         AND NOT folder STREQUAL "${CMAKE_SOURCE_DIR}/services"
         AND NOT dep_folder STREQUAL "${CMAKE_SOURCE_DIR}/services/testing")
        message(FATAL_ERROR "${name} depends on ${dep}: no service uses another's folder, only its contract")
      endif()
    endif()
  endforeach()
endfunction()

# Remembers the files of PURE targets for the purity test.
function(gaekju_list_pure_files pure)
  if(pure)
    list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
    set_property(GLOBAL APPEND PROPERTY GAEKJU_PURE_FILES ${ARGN})
  endif()
endfunction()

# Called once, after all targets.
function(gaekju_finish)
  get_property(pure_files GLOBAL PROPERTY GAEKJU_PURE_FILES)
  list(JOIN pure_files "\n" pure_files)
  file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/pure_files.txt CONTENT "${pure_files}\n")
endfunction()
