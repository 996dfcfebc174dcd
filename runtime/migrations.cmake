# gaekju_migrations(NAME payment_migrations NAMESPACE gaekju::payment FUNCTION PaymentMigrations SRCS migrations/0001_payment.sql ...)
#
# Embeds numbered SQL files in a library with the function `const std::vector<gaekju::runtime::Migration>& FUNCTION()`, declared in the
# generated header "<folder>/<NAME>.h" (for example "services/payment/payment_migrations.h").
function(gaekju_migrations)
  cmake_parse_arguments(arg "" "NAME;NAMESPACE;FUNCTION" "SRCS" ${ARGN})
  gaekju_require(gaekju_migrations "${arg_NAME}" NAME NAMESPACE FUNCTION SRCS)
  file(RELATIVE_PATH folder ${CMAKE_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  set(stem ${GAEKJU_GENERATED_DIR}/${folder}/${arg_NAME})
  set(files)
  foreach(src IN LISTS arg_SRCS)
    list(APPEND files ${CMAKE_CURRENT_SOURCE_DIR}/${src})
  endforeach()
  add_custom_command(
    OUTPUT ${stem}.cc ${stem}.h
    COMMAND ${CMAKE_COMMAND} -DOUT=${stem} -DHEADER=${folder}/${arg_NAME}.h -DNAMESPACE=${arg_NAMESPACE}
            -DFUNCTION=${arg_FUNCTION} "-DFILES=${files}" -P ${CMAKE_SOURCE_DIR}/runtime/embed_migrations.cmake
    DEPENDS ${files} ${CMAKE_SOURCE_DIR}/runtime/embed_migrations.cmake
    COMMENT "migrations ${arg_NAME}"
    VERBATIM)
  add_library(${arg_NAME} STATIC ${stem}.cc)
  gaekju_layer(layer)
  set_target_properties(${arg_NAME} PROPERTIES GAEKJU_LAYER ${layer} GAEKJU_FOLDER "${CMAKE_CURRENT_SOURCE_DIR}")
  target_include_directories(${arg_NAME} PUBLIC ${CMAKE_SOURCE_DIR} ${GAEKJU_GENERATED_DIR})
  target_link_libraries(${arg_NAME} PUBLIC absl::status absl::statusor absl::flat_hash_map protobuf::libprotobuf)
endfunction()
