# check_headers: every public header compiles alone, with nothing but what its library offers to
# those who link it (so a header that needs a PRIVATE_DEPS library fails too). One translation unit
# per header; not part of the default build.
add_custom_target(check_headers)

function(nibble_check_headers)
  get_property(libraries GLOBAL PROPERTY NIBBLE_LIBRARIES)
  foreach(library IN LISTS libraries)
    get_target_property(folder ${library} SOURCE_DIR)
    file(GLOB headers CONFIGURE_DEPENDS "${folder}/*.h")
    set(units "")
    foreach(header IN LISTS headers)
      file(RELATIVE_PATH relative "${CMAKE_SOURCE_DIR}" "${header}")
      set(unit "${CMAKE_BINARY_DIR}/header_checks/${library}/${relative}.cc")
      file(CONFIGURE OUTPUT "${unit}" CONTENT "#include \"${relative}\"\n")
      list(APPEND units "${unit}")
    endforeach()
    if(units)
      # Optimization off: the time goes into parsing. Objects, not -fsyntax-only, which neither
      # ninja nor ccache could keep from being done again each time.
      add_library(${library}_headers OBJECT EXCLUDE_FROM_ALL ${units})
      target_compile_options(${library}_headers PRIVATE -O0 -g0
        -Wno-unused-function)  # kernel bodies (*_cpu.h) have internal linkage
      target_link_libraries(${library}_headers PRIVATE ${library} nibble_flags)
      add_dependencies(check_headers ${library}_headers)
    endif()
  endforeach()
endfunction()
nibble_check_headers()
