# On single files, so that the flags of the precompiled header stay those of the other sources.
if(TGV2_HAVE_CUDA_KERNELS)
  set_source_files_properties("${PROJECT_SOURCE_DIR}/src/train/device.cc"
                              PROPERTIES COMPILE_DEFINITIONS TGV2_OWN_CUDA_KERNELS=1)
endif()
