# nibble_proto(name PROTOS proto/a.proto ... [DEPS nibble::other]): C++ and gRPC code of some protos
# as one library, alias nibble::name. Paths are relative to the root of the repository, in here, in
# `import` and in `#include "proto/a.pb.h"` alike. Generated code lives in the build folder only and
# is compiled without our warnings.
function(nibble_proto name)
  cmake_parse_arguments(arg "" "" "PROTOS;DEPS" ${ARGN})
  set(out "${CMAKE_BINARY_DIR}/generated")
  file(MAKE_DIRECTORY "${out}")
  set(sources "")
  foreach(proto IN LISTS arg_PROTOS)
    string(REGEX REPLACE "\\.proto$" "" stem "${out}/${proto}")
    add_custom_command(
      OUTPUT "${stem}.pb.cc" "${stem}.pb.h" "${stem}.grpc.pb.cc" "${stem}.grpc.pb.h"
      COMMAND protobuf::protoc "--proto_path=${CMAKE_SOURCE_DIR}" "--cpp_out=${out}" "--grpc_out=${out}"
              "--plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>" "${proto}"
      DEPENDS "${CMAKE_SOURCE_DIR}/${proto}"
      WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
      COMMENT "Generating C++ from ${proto}"
      VERBATIM)
    list(APPEND sources "${stem}.pb.cc" "${stem}.grpc.pb.cc" "${stem}.pb.h" "${stem}.grpc.pb.h")
  endforeach()
  add_library(nibble_${name} STATIC ${sources})
  target_include_directories(nibble_${name} SYSTEM PUBLIC "${out}")
  target_compile_options(nibble_${name} PRIVATE -w)
  target_link_libraries(nibble_${name}
    PUBLIC ${arg_DEPS} gRPC::grpc++ protobuf::libprotobuf PRIVATE nibble_flags)
  add_library(nibble::${name} ALIAS nibble_${name})
endfunction()
