# Imported targets for LibTorch 2.11, declared by hand.
#
# find_package(Torch) of a CUDA wheel is a fatal error on a machine without nvcc, edits the global CUDA flags and adds
# useless RUNPATH entries. These targets need only the library's own files.
#
#   LibTorch::cpu   headers, libtorch_cpu, libc10: runs without a driver and without the large NVIDIA libraries
#   LibTorch::cuda  the same plus libtorch_cuda and libc10_cuda; exists when the NVIDIA libraries it needs are there
#   LibTorch::cuda_math  libcudart and libcublas alone, for kernels without torch; exists beside LibTorch::cuda
#   LibTorch::nccl  nccl.h for c10d/ProcessGroupNCCL.hpp; exists beside LibTorch::cuda when the header is there
#
# Input: LIBTORCH_ROOT (cache or environment variable): the `torch` folder of the PyPI wheel, or an unpacked official
# LibTorch archive. Without it, what scripts/setup.sh put into the per-user cache is used (the GPU set first).
include_guard(GLOBAL)

set(LIBTORCH_WANTED_VERSION "2.11.0" CACHE STRING "Version of LibTorch that the sources are written for")
mark_as_advanced(LIBTORCH_WANTED_VERSION)

function(_libtorch_find_root)
  if(LIBTORCH_ROOT)
    return()
  endif()
  set(root "$ENV{LIBTORCH_ROOT}")
  if(NOT root)
    set(cache "$ENV{TRAIN_GPT_V2_CACHE}")
    if(NOT cache)
      set(cache "$ENV{XDG_CACHE_HOME}")
      if(NOT cache)
        set(cache "$ENV{HOME}/.cache")
      endif()
      string(APPEND cache "/train_gpt_v2")
    endif()
    foreach(set IN ITEMS gpu cpu)
      if(EXISTS "${cache}/libtorch-${LIBTORCH_WANTED_VERSION}-${set}/.complete")
        set(root "${cache}/libtorch-${LIBTORCH_WANTED_VERSION}-${set}/torch")
        break()
      endif()
    endforeach()
  endif()
  set(LIBTORCH_ROOT "${root}" CACHE PATH "The `torch` folder of the wheel, or an unpacked official LibTorch" FORCE)
endfunction()

_libtorch_find_root()
if(NOT EXISTS "${LIBTORCH_ROOT}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch not found (LIBTORCH_ROOT='${LIBTORCH_ROOT}').\n"
                      "Run scripts/setup.sh once, or configure with -DLIBTORCH_ROOT=DIR where DIR holds lib/libtorch_cpu.so.")
endif()

file(STRINGS "${LIBTORCH_ROOT}/include/torch/headeronly/version.h" _lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
string(REGEX REPLACE "[^0-9;]" "" LIBTORCH_VERSION "${_lines}")
string(REPLACE ";" "." LIBTORCH_VERSION "${LIBTORCH_VERSION}")
if(NOT LIBTORCH_VERSION VERSION_EQUAL LIBTORCH_WANTED_VERSION)
  message(FATAL_ERROR "LibTorch ${LIBTORCH_VERSION} found in ${LIBTORCH_ROOT}, ${LIBTORCH_WANTED_VERSION} wanted")
endif()

get_filename_component(_site "${LIBTORCH_ROOT}" DIRECTORY)
set(_nv "${_site}/nvidia")

function(_libtorch_imported name file)
  add_library(${name} SHARED IMPORTED GLOBAL)
  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION "${LIBTORCH_ROOT}/lib/${file}" IMPORTED_SONAME "${file}")
endfunction()

_libtorch_imported(LibTorch::c10 libc10.so)
_libtorch_imported(LibTorch::torch_cpu libtorch_cpu.so)

add_library(LibTorch::headers INTERFACE IMPORTED GLOBAL)
target_include_directories(LibTorch::headers SYSTEM INTERFACE "${LIBTORCH_ROOT}/include"
                                                              "${LIBTORCH_ROOT}/include/torch/csrc/api/include")
# What the library was built with; c10d's headers are empty without them.
target_compile_definitions(LibTorch::headers INTERFACE USE_DISTRIBUTED USE_C10D_GLOO)

add_library(LibTorch::cpu INTERFACE IMPORTED GLOBAL)
target_link_libraries(LibTorch::cpu INTERFACE LibTorch::headers LibTorch::torch_cpu LibTorch::c10)

# A wheel keeps its NVIDIA libraries in the folder `nvidia` beside it; an official archive has them in its own lib/.
set(LIBTORCH_HAS_CUDA OFF)
set(LIBTORCH_CUDART "")
if(EXISTS "${LIBTORCH_ROOT}/lib/libtorch_cuda.so")
  set(LIBTORCH_HAS_CUDA ON)
  file(GLOB _bundled_cudart "${LIBTORCH_ROOT}/lib/libcudart*.so*")
  if(_bundled_cudart)
    list(GET _bundled_cudart 0 LIBTORCH_CUDART)
  else()
    set(LIBTORCH_CUDART "${_nv}/cu13/lib/libcudart.so.13")
    # Everything libtorch_cuda.so and libtorch_cuda_linalg.so name in NEEDED, besides cupti.
    foreach(_lib IN ITEMS
        cu13/lib/libcudart.so.13 cu13/lib/libcublas.so.13 cu13/lib/libcublasLt.so.13 cu13/lib/libcufft.so.12
        cu13/lib/libcufile.so.0 cu13/lib/libcurand.so.10 cu13/lib/libcusolver.so.12 cu13/lib/libcusparse.so.12
        cu13/lib/libnvJitLink.so.13 cu13/lib/libnvrtc.so.13 cudnn/lib/libcudnn.so.9 cusparselt/lib/libcusparseLt.so.0
        nccl/lib/libnccl.so.2 nvshmem/lib/libnvshmem_host.so.3)
      if(NOT EXISTS "${_nv}/${_lib}")
        set(LIBTORCH_HAS_CUDA OFF)
        message(STATUS "LibTorch: no ${_lib} beside the wheel, so this is a CPU build")
        break()
      endif()
    endforeach()
  endif()
endif()

set(LIBTORCH_HAS_CUDA_HEADERS OFF)
if(LIBTORCH_HAS_CUDA)
  _libtorch_imported(LibTorch::torch_cuda libtorch_cuda.so)
  _libtorch_imported(LibTorch::c10_cuda libc10_cuda.so)
  add_library(LibTorch::cuda INTERFACE IMPORTED GLOBAL)
  # nvidia-cuda-runtime's headers include crt/host_defines.h (nvidia-cuda-crt) and nv/target (nvidia-cuda-cccl); a
  # toolkit's headers serve where those two small wheels are missing.
  set(_inc "${_nv}/cu13/include")
  foreach(_dir IN ITEMS "${_inc}" "$ENV{CUDA_HOME}/include" /usr/local/cuda/include)
    if(EXISTS "${_dir}/cuda_runtime_api.h" AND EXISTS "${_dir}/crt/host_defines.h" AND EXISTS "${_dir}/cccl/nv/target")
      set(LIBTORCH_HAS_CUDA_HEADERS ON)
      target_include_directories(LibTorch::cuda SYSTEM INTERFACE "${_dir}" "${_dir}/cccl")
      break()
    endif()
  endforeach()
  target_include_directories(LibTorch::cuda SYSTEM INTERFACE "${_inc}")  # cublas_v2.h, cusparse.h ...
  target_compile_definitions(LibTorch::cuda INTERFACE USE_C10D_NCCL)
  if(EXISTS "${_nv}/cu13/lib/libcublas.so.13")
    set(_cublas "${_nv}/cu13/lib")
  else()
    set(_cublas "${LIBTORCH_ROOT}/lib")
  endif()
  file(GLOB _cublas_files "${_cublas}/libcublas.so*" "${_cublas}/libcublasLt.so*")
  add_library(LibTorch::cuda_math INTERFACE IMPORTED GLOBAL)
  target_link_libraries(LibTorch::cuda_math INTERFACE ${_cublas_files} "${LIBTORCH_CUDART}")
  # Nothing refers to a symbol of libtorch_cuda: its kernels register themselves when it is loaded.
  target_link_libraries(LibTorch::cuda INTERFACE LibTorch::cpu
    "-Wl,--push-state,--no-as-needed,$<TARGET_FILE:LibTorch::torch_cuda>,--pop-state" LibTorch::c10_cuda)
  # c10/cuda headers call the CUDA runtime inline (cudaGetLastError, cudaEventRecord ...).
  target_link_libraries(LibTorch::cuda INTERFACE "${LIBTORCH_CUDART}")
  target_link_directories(LibTorch::cuda INTERFACE "${LIBTORCH_ROOT}/lib")
  if(EXISTS "${_nv}/nccl/include/nccl.h")
    add_library(LibTorch::nccl INTERFACE IMPORTED GLOBAL)
    target_include_directories(LibTorch::nccl SYSTEM INTERFACE "${_nv}/nccl/include")
  endif()
endif()

message(STATUS "LibTorch ${LIBTORCH_VERSION}: ${LIBTORCH_ROOT} "
               "(CUDA libraries: ${LIBTORCH_HAS_CUDA}, CUDA headers: ${LIBTORCH_HAS_CUDA_HEADERS})")
