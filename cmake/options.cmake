# Compiler, linker and cache settings that hold for every target.
option(GAEKJU_HARDEN "Fortify, stack protector and full RELRO" OFF)
option(GAEKJU_MUTANTS "Seeded defects, one of which is chosen at run time (flow/mutant.h): only for ./dev mutants" OFF)
set(GAEKJU_SANITIZE "" CACHE STRING "Sanitizers to build with: address,undefined or thread")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_LINK_DEPENDS_NO_SHARED ON)

# Everywhere, because gRPC's package asks for it and a precompiled header serves only those that agree on it.
add_compile_options(-pthread)

# GK_CHECK and libstdc++'s own checks stay on in every build: a bug that stops a process is cheaper than one that
# goes on with somebody's money.
add_compile_definitions(_GLIBCXX_ASSERTIONS)

if(GAEKJU_HARDEN)
  add_compile_options(-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fstack-clash-protection)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    add_compile_options(-fcf-protection)
  endif()
  add_link_options(-Wl,-z,relro -Wl,-z,now)
endif()

if(GAEKJU_SANITIZE)
  add_compile_options(-fsanitize=${GAEKJU_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${GAEKJU_SANITIZE})
endif()
if(GAEKJU_SANITIZE STREQUAL "thread")
  # Protobuf's MapField has two members more where the compiler says that it sanitizes threads, which the distribution's
  # library has not; so it may not say so, except to the C++ library.
  add_compile_options(-U__SANITIZE_THREAD__ -D_GLIBCXX_TSAN=1 -Wno-tsan)
endif()

# Warnings are errors in our code only; generated code takes none (see gaekju_proto).
set(GAEKJU_WARNINGS -Wall -Wextra -Werror -Wno-error=invalid-pch)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 sees overlaps in std::string that are none (GCC bug 105651), and unset members in what it instruments.
  list(APPEND GAEKJU_WARNINGS -Wno-restrict)
  if(GAEKJU_SANITIZE)
    list(APPEND GAEKJU_WARNINGS -Wno-maybe-uninitialized)
  endif()
endif()

find_program(GAEKJU_MOLD mold)
find_program(GAEKJU_LLD ld.lld)
if(GAEKJU_MOLD)
  add_link_options(-fuse-ld=mold)
elseif(GAEKJU_LLD)
  add_link_options(-fuse-ld=lld)
endif()

# ccache needs to be told that a precompiled header's defines and __TIME__ are not looked at, and the base directory
# lets one cache serve every checkout.
find_program(GAEKJU_CCACHE ccache)
if(GAEKJU_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(launcher
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${GAEKJU_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  add_compile_options($<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endif()
