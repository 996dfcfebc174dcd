# Finds what Gaekju links and gives each a short name of its own, so that a newer gRPC (CMake packages all through)
# serves as well as Debian's 1.51 (a mixture of CMake packages, find modules and pkg-config).
#
#   gaekju::protobuf gaekju::grpc gaekju::crypto gaekju::pq gaekju::nats gaekju::spdlog gaekju::prometheus
#
# Abseil's targets keep their names (absl::status, absl::strings, ...).
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(absl CONFIG REQUIRED)

# A Protobuf that was built with CMake brings a config package; Debian's has only CMake's find module.
find_package(Protobuf CONFIG QUIET)
if(NOT TARGET protobuf::libprotobuf)
  find_package(Protobuf MODULE REQUIRED)
endif()
find_package(gRPC CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)

function(gaekju_external name)
  add_library(gaekju_external_${name} INTERFACE)
  target_link_libraries(gaekju_external_${name} INTERFACE ${ARGN})
  add_library(gaekju::${name} ALIAS gaekju_external_${name})
endfunction()

gaekju_external(protobuf protobuf::libprotobuf)
gaekju_external(grpc gRPC::grpc++ gRPC::grpc++_reflection protobuf::libprotobuf)
gaekju_external(spdlog spdlog::spdlog)
gaekju_external(prometheus prometheus-cpp::core prometheus-cpp::pull)

# Of gRPC's and libpq's own development packages.
pkg_check_modules(libcrypto REQUIRED IMPORTED_TARGET libcrypto>=3)
gaekju_external(crypto PkgConfig::libcrypto)

# CMake's FindPostgreSQL also wants the server's headers, which a libpq client does not need.
pkg_check_modules(libpq REQUIRED IMPORTED_TARGET libpq>=14)
gaekju_external(pq PkgConfig::libpq)

# pkg-config first: the CMake package of Debian 12's libnats-dev names a static library that the package leaves out,
# and find_package(cnats) fails on it.
pkg_check_modules(libnats IMPORTED_TARGET libnats)
if(libnats_FOUND)
  gaekju_external(nats PkgConfig::libnats)
else()
  find_package(cnats CONFIG REQUIRED)
  gaekju_external(nats cnats::nats)
endif()
