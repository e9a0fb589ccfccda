# Everything else the program needs comes from the system's packages (third_party/README.md lists them).
include_guard(GLOBAL)

find_package(Threads REQUIRED)
find_package(ZLIB REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(ICU REQUIRED COMPONENTS uc data)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 2.1 REQUIRED)
find_package(spdlog 1.9 REQUIRED)
find_package(simdjson 3.0 REQUIRED)
find_package(yaml-cpp 0.6 REQUIRED)

add_library(TGV2::yaml INTERFACE IMPORTED)
target_link_libraries(TGV2::yaml INTERFACE yaml-cpp)

find_path(SENTENCEPIECE_INCLUDE sentencepiece_processor.h REQUIRED)
find_library(SENTENCEPIECE_LIBRARY sentencepiece REQUIRED)
find_library(SENTENCEPIECE_TRAIN_LIBRARY sentencepiece_train REQUIRED)
mark_as_advanced(SENTENCEPIECE_INCLUDE SENTENCEPIECE_LIBRARY SENTENCEPIECE_TRAIN_LIBRARY)
add_library(TGV2::sentencepiece INTERFACE IMPORTED)
target_include_directories(TGV2::sentencepiece SYSTEM INTERFACE "${SENTENCEPIECE_INCLUDE}")
target_link_libraries(TGV2::sentencepiece INTERFACE "${SENTENCEPIECE_TRAIN_LIBRARY}" "${SENTENCEPIECE_LIBRARY}")
