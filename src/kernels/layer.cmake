# One translation unit per instruction set; the program asks the processor at start (isa.cc). -ffp-contract=off keeps the
# portable unit's roundings the same on every target, and the vector units say fma where they mean it. GCC 12 takes the
# undefined operands inside its own AVX-512 headers for our mistakes (GCC bug 105593), hence the two -Wno.
set(_kernel_flags -O3 -fno-math-errno -ffp-contract=off -fno-stack-protector -U_FORTIFY_SOURCE
  $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> -Wno-uninitialized)
set_source_files_properties("${PROJECT_SOURCE_DIR}/src/kernels/isa_portable.cc" PROPERTIES COMPILE_OPTIONS "${_kernel_flags}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  target_compile_definitions(tgv2_kernels PRIVATE TGV2_X86_64=1)
  set(_avx2 -mavx2 -mfma -mbmi2 -mtune=haswell)
  set(_avx512 ${_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512 -mtune=skylake-avx512)
  set_source_files_properties("${PROJECT_SOURCE_DIR}/src/kernels/isa_avx2.cc"
    PROPERTIES COMPILE_OPTIONS "${_kernel_flags};${_avx2}")
  set_source_files_properties("${PROJECT_SOURCE_DIR}/src/kernels/isa_avx512.cc"
    PROPERTIES COMPILE_OPTIONS "${_kernel_flags};${_avx512}")
  set_source_files_properties("${PROJECT_SOURCE_DIR}/src/kernels/isa_avx512_bf16.cc"
    PROPERTIES COMPILE_OPTIONS "${_kernel_flags};${_avx512};-mavx512bf16")
endif()

# Our own CUDA kernels: raw pointers only, so no torch header reaches nvcc (2.5 s instead of 89 s for six architectures).
if(TGV2_HAVE_CUDA_KERNELS)
  file(GLOB_RECURSE _cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/kernels/*.cu")
  add_library(tgv2_cuda_kernels STATIC ${_cuda_sources})
  target_include_directories(tgv2_cuda_kernels PRIVATE "${PROJECT_SOURCE_DIR}/include")
  target_compile_options(tgv2_cuda_kernels PRIVATE -O3 --expt-relaxed-constexpr)
  set_target_properties(tgv2_cuda_kernels PROPERTIES CUDA_RUNTIME_LIBRARY None)  # LibTorch's libcudart is the only one
  target_link_libraries(tgv2_cuda_kernels INTERFACE LibTorch::cuda_math)
  target_link_libraries(tgv2_kernels INTERFACE tgv2_cuda_kernels)
endif()
