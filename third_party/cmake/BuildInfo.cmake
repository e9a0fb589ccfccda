# Run as a script at build time (src/app/layer.cmake).
execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=10 OUTPUT_VARIABLE commit
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT commit)
  set(commit "unknown")
endif()
set(text "#pragma once\n#define TGV2_VERSION \"${VERSION}\"\n#define TGV2_GIT_COMMIT \"${commit}\"\n#define TGV2_CUDA_ARCHITECTURES \"${ARCHITECTURES}\"\n")
set(old "")
if(EXISTS "${OUTPUT}")
  file(READ "${OUTPUT}" old)
endif()
if(NOT text STREQUAL old)
  file(WRITE "${OUTPUT}" "${text}")
endif()
