# Flags that hold for every target of this project.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

find_program(NIBBLE_CCACHE ccache)
if(NIBBLE_CCACHE)
  # base_dir makes a second clone on the same machine hit the first one's cache.
  set(launcher "${CMAKE_COMMAND}" -E env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1
      "CCACHE_SLOPPINESS=pch_defines,time_macros" "${NIBBLE_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()
find_program(NIBBLE_MOLD mold)

add_library(nibble_flags INTERFACE)
# No contraction: an FMA is written where one is meant, or results differ between instruction sets.
target_compile_options(nibble_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-missing-field-initializers -ffp-contract=off>)
if(NIBBLE_MOLD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # norelro: mold 1.10 counts .tbss into GNU_RELRO; where the layout puts it on the page before the
  # first writable one, the loader refuses the binary ("cannot apply additional memory protection").
  target_link_options(nibble_flags INTERFACE -fuse-ld=mold -Wl,-z,norelro)
endif()
if(NIBBLE_SANITIZE)
  # GCC's -Wmaybe-uninitialized sees std::optional's payload through the instrumentation and is wrong about it.
  target_compile_options(nibble_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${NIBBLE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-maybe-uninitialized>)
  target_link_options(nibble_flags INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()
