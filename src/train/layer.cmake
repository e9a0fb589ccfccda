# On single files, so that the flags of the precompiled header stay those of the other sources.
if(TGV2_HAVE_CUDA_KERNELS)
  set_source_files_properties("${PROJECT_SOURCE_DIR}/src/train/device.cc"
                              PROPERTIES COMPILE_DEFINITIONS TGV2_OWN_CUDA_KERNELS=1)
endif()

# c10d's Gloo header wants Gloo's own headers, which no package brings; these declare the few names it needs.
target_include_directories(tgv2_train SYSTEM PRIVATE "${PROJECT_SOURCE_DIR}/third_party/gloo_abi")
if(TARGET LibTorch::nccl AND LIBTORCH_HAS_CUDA_HEADERS)
  target_include_directories(tgv2_train SYSTEM PRIVATE $<TARGET_PROPERTY:LibTorch::nccl,INTERFACE_INCLUDE_DIRECTORIES>)
  set_source_files_properties("${PROJECT_SOURCE_DIR}/src/train/ranks.cc" PROPERTIES
    COMPILE_DEFINITIONS TGV2_NCCL=1 SKIP_PRECOMPILE_HEADERS ON)
endif()
