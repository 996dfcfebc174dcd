# Run by gaekju_migrations(): writes FILES as C++ into OUT.{h,cc}.
string(REPLACE "::" "_" guard "${NAMESPACE}_${FUNCTION}_H_")
string(TOUPPER "${guard}" guard)
set(note "// Generated from SQL by runtime/embed_migrations.cmake.\n")
file(WRITE ${OUT}.h.new "${note}#ifndef ${guard}\n#define ${guard}\n\n#include <vector>\n\n#include \"runtime/migrate.h\"\n
namespace ${NAMESPACE} {\n\nconst std::vector<gaekju::runtime::Migration>& ${FUNCTION}();\n\n}  // namespace ${NAMESPACE}\n
#endif  // ${guard}\n")
file(WRITE ${OUT}.cc.new "${note}#include \"${HEADER}\"\n\nnamespace ${NAMESPACE} {\n
const std::vector<gaekju::runtime::Migration>& ${FUNCTION}() {
  static const auto* const migrations = new std::vector<gaekju::runtime::Migration>{\n")
set(last 0)
foreach(file IN LISTS FILES)
  get_filename_component(name ${file} NAME_WE)
  if(NOT name MATCHES "^0*([0-9]+)_[a-z0-9_]+$")
    message(FATAL_ERROR "${file}: a migration is called NNNN_name.sql")
  endif()
  set(number ${CMAKE_MATCH_1})
  if(NOT number GREATER last)
    message(FATAL_ERROR "${file}: migrations are listed in the order of their numbers, each number once")
  endif()
  set(last ${number})
  file(READ ${file} sql)
  # Several literals: a compiler need not take one longer than 65,536 characters. [[ and ; would be lists to CMake.
  file(APPEND ${OUT}.cc.new "      {${number}, \"${name}\", R\"gaekju_sql(")
  file(APPEND ${OUT}.cc.new "${sql}")
  file(APPEND ${OUT}.cc.new ")gaekju_sql\"},\n")
endforeach()
file(APPEND ${OUT}.cc.new "  };\n  return *migrations;\n}\n\n}  // namespace ${NAMESPACE}\n")
file(RENAME ${OUT}.h.new ${OUT}.h)
file(RENAME ${OUT}.cc.new ${OUT}.cc)
