# Imported targets for everything in third_party/README.md. Small and ours: torch's own CMake
# config breaks under CMake 3.25, and its include folder would shadow the system's Protobuf.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(GTest REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(SQLite3 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(ZLIB REQUIRED)
find_package(Boost 1.74 REQUIRED)  # headers only: Beast and Asio
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(CAIRO REQUIRED IMPORTED_TARGET cairo)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)

if(NIBBLE_WITH_TORCH)
  file(GLOB torch_roots "${NIBBLE_DEPS_DIR}/venv/lib/python3*/site-packages/torch")
  if(NOT torch_roots)
    message(FATAL_ERROR "LibTorch not found under ${NIBBLE_DEPS_DIR}; run scripts/bootstrap.sh first")
  endif()
  list(GET torch_roots 0 NIBBLE_TORCH_ROOT)
  add_library(nibble_torch INTERFACE)
  add_library(nibble::torch ALIAS nibble_torch)
  # -idirafter: after the system's folders, so that its bundled google/protobuf never wins.
  target_compile_options(nibble_torch INTERFACE
    "SHELL:-idirafter ${NIBBLE_TORCH_ROOT}/include/torch/csrc/api/include"
    "SHELL:-idirafter ${NIBBLE_TORCH_ROOT}/include")
  target_compile_definitions(nibble_torch INTERFACE USE_C10D_GLOO USE_DISTRIBUTED)
  target_link_libraries(nibble_torch INTERFACE
    "${NIBBLE_TORCH_ROOT}/lib/libtorch_cpu.so" "${NIBBLE_TORCH_ROOT}/lib/libc10.so"
    "${NIBBLE_TORCH_ROOT}/lib/libgomp.so.1")
  # CMake itself puts the folder into the RPATH of the build, and leaves it out when installing.
  target_link_options(nibble_torch INTERFACE -Wl,--allow-shlib-undefined)
endif()

if(NIBBLE_WITH_TORCH)
  # The wheel's libraries have no name without their version: libparquet.so.<version>.
  file(GLOB parquet_libraries "${NIBBLE_DEPS_DIR}/venv/lib/python3*/site-packages/pyarrow/libparquet.so.*")
  if(NOT parquet_libraries)
    message(FATAL_ERROR "Arrow not found under ${NIBBLE_DEPS_DIR}; run scripts/bootstrap.sh first")
  endif()
  list(GET parquet_libraries 0 parquet_library)
  string(REPLACE "/libparquet.so" "/libarrow.so" arrow_library "${parquet_library}")
  get_filename_component(pyarrow_root "${parquet_library}" DIRECTORY)
  add_library(nibble_parquet INTERFACE)
  add_library(nibble::parquet ALIAS nibble_parquet)
  target_compile_options(nibble_parquet INTERFACE "SHELL:-idirafter ${pyarrow_root}/include")
  target_link_libraries(nibble_parquet INTERFACE "${parquet_library}" "${arrow_library}")
endif()

if(NIBBLE_WITH_CUDA AND NIBBLE_WITH_TORCH)
  add_library(nibble_torch_cuda INTERFACE)
  add_library(nibble::torch_cuda ALIAS nibble_torch_cuda)
  # --no-as-needed: torch's CUDA operators register themselves; nothing names their symbols.
  target_link_libraries(nibble_torch_cuda INTERFACE nibble_torch
    -Wl,--push-state,--no-as-needed "${NIBBLE_TORCH_ROOT}/lib/libtorch_cuda.so"
    "${NIBBLE_TORCH_ROOT}/lib/libc10_cuda.so" -Wl,--pop-state)
endif()
if(NIBBLE_WITH_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES OFF)   # -gencode flags are given per target
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS /usr/local/cuda/bin REQUIRED)
  enable_language(CUDA)
  # nvcc 13 has C++20, but CMake 3.25 does not know the flag.
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  find_package(CUDAToolkit REQUIRED)
endif()
