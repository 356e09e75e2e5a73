# cmake --install: a folder that runs wherever it is moved. bin/nibble finds its libraries in lib/
# beside it (RUNPATH $ORIGIN/../lib); those find each other (RUNPATH $ORIGIN, set by patchelf).
# Not in it: libc, the compiler's runtime and torch with its CUDA libraries. Name torch's folder:
#   LD_LIBRARY_PATH=<venv>/lib/python3.11/site-packages/torch/lib bin/nibble doctor
find_program(NIBBLE_PATCHELF patchelf)
if(NOT NIBBLE_PATCHELF)
  message(STATUS "patchelf not found: an installed nibble also needs its own lib/ in LD_LIBRARY_PATH")
endif()

set_target_properties(nibble nibble_reward_worker nibble_parquet_reader PROPERTIES
  INSTALL_RPATH "$ORIGIN/../lib" INSTALL_RPATH_USE_LINK_PATH OFF)
install(TARGETS nibble nibble_reward_worker nibble_parquet_reader
  RUNTIME_DEPENDENCY_SET nibble_libraries RUNTIME DESTINATION bin)
install(RUNTIME_DEPENDENCY_SET nibble_libraries
  PRE_EXCLUDE_REGEXES
    "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv|gcc_s|stdc\\+\\+|gomp)\\.so"
    "^lib(torch|c10|cu|nccl|nvToolsExt|nvrtc)"
  POST_INCLUDE_REGEXES "/site-packages/pyarrow/"  # Arrow: of it nibble-parquet needs this version
  POST_EXCLUDE_REGEXES "/site-packages/"
  LIBRARY DESTINATION lib)
# Arrow's wheel has its symbols in it: 62 MB, and 50 without them.
install(CODE "
  foreach(file IN LISTS CMAKE_INSTALL_MANIFEST_FILES)
    if(file MATCHES \"/lib/lib(arrow|parquet)\\\\.so\")
      execute_process(COMMAND \"${CMAKE_STRIP}\" \"\$ENV{DESTDIR}\${file}\" COMMAND_ERROR_IS_FATAL ANY)
    endif()
  endforeach()")
if(NIBBLE_PATCHELF)
  # Only what this run installed: the prefix may hold libraries of others.
  install(CODE "
    foreach(file IN LISTS CMAKE_INSTALL_MANIFEST_FILES)
      set(library \"\$ENV{DESTDIR}\${file}\")
      if(file MATCHES \"/lib/[^/]*\\\\.so\" AND NOT IS_SYMLINK \"\${library}\")
        execute_process(COMMAND \"${NIBBLE_PATCHELF}\" --set-rpath [[\$ORIGIN]] \"\${library}\"
                        COMMAND_ERROR_IS_FATAL ANY)
      endif()
    endforeach()")
endif()
