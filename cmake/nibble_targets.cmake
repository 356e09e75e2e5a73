# nibble_library(name SOURCES ... DEPS ... PRIVATE_DEPS ...): one library per folder, alias nibble::name.
# nibble_test(name [SOURCES ...] DEPS ... [LABELS ...] [TIMEOUT s]): one GoogleTest binary.
# nibble_bench(name DEPS ...): one benchmark binary, built by the target `benchmarks` only.
include(GNUInstallDirs)

# Time limits of tests are multiplied by this: sanitized code is slower.
set(NIBBLE_TEST_PATIENCE 1)
if(NIBBLE_SANITIZE)
  set(NIBBLE_TEST_PATIENCE 4)
endif()

function(nibble_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  if(arg_SOURCES)
    add_library(nibble_${name} STATIC ${arg_SOURCES})
    target_include_directories(nibble_${name} PUBLIC "${CMAKE_SOURCE_DIR}")
    target_link_libraries(nibble_${name} PUBLIC ${arg_DEPS} PRIVATE nibble_flags ${arg_PRIVATE_DEPS})
  else()
    add_library(nibble_${name} INTERFACE)
    target_include_directories(nibble_${name} INTERFACE "${CMAKE_SOURCE_DIR}")
    target_link_libraries(nibble_${name} INTERFACE ${arg_DEPS})
  endif()
  add_library(nibble::${name} ALIAS nibble_${name})
  set_property(GLOBAL APPEND PROPERTY NIBBLE_LIBRARIES nibble_${name})  # for nibble_headers.cmake
endfunction()

function(nibble_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPS;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT arg_SOURCES)
    set(arg_SOURCES ${name}.cc)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  math(EXPR arg_TIMEOUT "${NIBBLE_TEST_PATIENCE} * ${arg_TIMEOUT}")
  if(NOT arg_LABELS)
    set(arg_LABELS cpu)
  endif()
  add_executable(${name} ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(${name} PRIVATE nibble_flags ${arg_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    NIBBLE_SOURCE_DIR="${CMAKE_SOURCE_DIR}" NIBBLE_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  # Tests share two cores: OpenMP threads that spin for each other would only take turns.
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "OMP_NUM_THREADS=1;${arg_ENVIRONMENT}")
endfunction()

add_custom_target(benchmarks)
function(nibble_bench name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  if(NOT arg_SOURCES)
    set(arg_SOURCES ${name}.cc)
  endif()
  add_executable(${name} EXCLUDE_FROM_ALL ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE nibble_flags ${arg_DEPS})
  add_dependencies(benchmarks ${name})
endfunction()
