# How our own targets are made: one static library per layer, one precompiled header for all that include torch.
include_guard(GLOBAL)

# Warnings, hardening and sanitizers: the same for every target of ours. No separate cold parts of functions: g++ 12 makes
# empty ones, whose unwind entries hide those of the function behind them, and an exception there ends in abort().
add_library(tgv2_flags INTERFACE)
target_include_directories(tgv2_flags INTERFACE "${PROJECT_SOURCE_DIR}/include")
target_compile_options(tgv2_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wnon-virtual-dtor;$<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>;-Werror;-g1;-fstack-protector-strong;$<$<CXX_COMPILER_ID:GNU>:-fno-reorder-blocks-and-partition>>)
target_compile_definitions(tgv2_flags INTERFACE $<$<CONFIG:Release>:_FORTIFY_SOURCE=2>)
target_link_options(tgv2_flags INTERFACE -Wl,-z,relro,-z,now)
if(TGV2_SANITIZE STREQUAL "address")
  # Without null and object-size: a fifth of the compile time, and the first ends in a report of ASan's anyway.
  set(_san -fsanitize=address,undefined -fno-sanitize=vptr,null,object-size -fno-omit-frame-pointer
    -fno-sanitize-recover=undefined)
elseif(TGV2_SANITIZE STREQUAL "thread")
  set(_san -fsanitize=thread -fno-omit-frame-pointer)
elseif(TGV2_SANITIZE STREQUAL "fuzzer")  # clang only: libFuzzer's coverage beside address and undefined
  set(_san -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize=vptr,function -fno-omit-frame-pointer
    -fno-sanitize-recover=undefined)
elseif(TGV2_SANITIZE)
  message(FATAL_ERROR "TGV2_SANITIZE is address, thread or fuzzer, not '${TGV2_SANITIZE}'")
endif()
if(TGV2_SANITIZE)
  # Instrumented code defeats GCC's flow analysis: std::variant "may be used uninitialized" everywhere.
  target_compile_options(tgv2_flags INTERFACE ${_san} -U_FORTIFY_SOURCE
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-maybe-uninitialized>)
  target_link_options(tgv2_flags INTERFACE ${_san})
endif()

# One interface decides for the whole program: with the GPU libraries or without them.
add_library(tgv2_torch INTERFACE)
if(LIBTORCH_HAS_CUDA)
  target_link_libraries(tgv2_torch INTERFACE LibTorch::cuda)
  if(LIBTORCH_HAS_CUDA_HEADERS)
    target_compile_definitions(tgv2_torch INTERFACE TGV2_CUDA_API=1)  # c10/cuda and ATen/cuda may be included
  endif()
else()
  target_link_libraries(tgv2_torch INTERFACE LibTorch::cpu)
endif()

# The owner of the precompiled header. All targets that reuse it must compile with the same flags and definitions.
add_library(tgv2_pch STATIC "${PROJECT_SOURCE_DIR}/src/pch.cc")
target_link_libraries(tgv2_pch PUBLIC tgv2_flags tgv2_torch)
target_precompile_headers(tgv2_pch PRIVATE "${PROJECT_SOURCE_DIR}/src/pch.h")

function(tgv2_torch_target target)
  target_link_libraries(${target} PUBLIC tgv2_flags tgv2_torch)
  target_precompile_headers(${target} REUSE_FROM tgv2_pch)
endfunction()

set(TGV2_LAYERS_BELOW "")  # linked by the next layer

# tgv2_add_layer(NAME [TORCH] [LINK targets...]): the sources are what lies in src/NAME.
macro(tgv2_add_layer name)
  cmake_parse_arguments(_layer "TORCH" "" "LINK" ${ARGN})
  file(GLOB_RECURSE _sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/${name}/*.cc")
  add_library(tgv2_${name} STATIC ${_sources})
  target_link_libraries(tgv2_${name} PUBLIC tgv2_flags ${TGV2_LAYERS_BELOW} ${_layer_LINK})
  if(_layer_TORCH)
    tgv2_torch_target(tgv2_${name})
  endif()
  if(EXISTS "${PROJECT_SOURCE_DIR}/src/${name}/layer.cmake")
    include("${PROJECT_SOURCE_DIR}/src/${name}/layer.cmake")  # per-file flags, generated sources, CUDA
  endif()
  list(PREPEND TGV2_LAYERS_BELOW tgv2_${name})
endmacro()
