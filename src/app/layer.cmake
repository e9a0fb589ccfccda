# build_info.h: made anew at every build, written only when something in it changed.
set(_build_info "${PROJECT_BINARY_DIR}/generated/build_info.h")
string(REPLACE "-real" "" _architectures "${CMAKE_CUDA_ARCHITECTURES}")
string(REPLACE ";" " " _architectures "${_architectures}")
if(NOT TGV2_HAVE_CUDA_KERNELS)
  set(_architectures "none")
endif()
add_custom_target(tgv2_build_info
  COMMAND "${CMAKE_COMMAND}" "-DOUTPUT=${_build_info}" "-DVERSION=${PROJECT_VERSION}"
          "-DARCHITECTURES=${_architectures}" "-DSOURCE=${PROJECT_SOURCE_DIR}"
          -P "${PROJECT_SOURCE_DIR}/third_party/cmake/BuildInfo.cmake"
  BYPRODUCTS "${_build_info}" VERBATIM)
add_dependencies(tgv2_app tgv2_build_info)
target_include_directories(tgv2_app PRIVATE "${PROJECT_BINARY_DIR}/generated")

# demo_config.h: configs/demo.json as text, so that demo-data can write it beside the data.
set(_demo_config "${PROJECT_SOURCE_DIR}/configs/demo.json")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${_demo_config}")
file(READ "${_demo_config}" _demo_text)
file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/generated/demo_config.h" @ONLY CONTENT
"#pragma once
inline constexpr char kDemoConfig[] = R\"json(@_demo_text@)json\";
")
