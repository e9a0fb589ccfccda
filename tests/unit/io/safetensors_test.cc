// safetensors: the fixtures' files, our own, and forged headers.
#include "train_gpt_v2/io/safetensors.h"

#include <gmock/gmock.h>

#include "support/forged_archive.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using testing::TemporaryFolder;

std::string safetensors(const std::string& header, std::size_t data = 0) {
  return testing::u64(header.size()) + header + std::string(data, 'd');
}

TEST(Safetensors, RoundTripIsByteIdenticalToTheReferenceImplementation) {
  const TemporaryFolder folder;
  const std::string path = data_path("fixtures/model/gpt.safetensors");
  const SafetensorsFile content = read_safetensors(path);
  EXPECT_EQ(content.tensors.size(), 215u);
  EXPECT_THAT(content.metadata, ElementsAre(Pair("format", "pt")));
  write_safetensors(folder.file("a.safetensors"), content);
  EXPECT_EQ(read_file(folder.file("a.safetensors"), 1 << 30), read_file(path, 1 << 30));
}

TEST(Safetensors, AllTypesAndViews) {
  const TemporaryFolder folder;
  SafetensorsFile content;
  for (const DType dtype :
       {DType::kBool, DType::kFloat64, DType::kUInt8, DType::kFloat32, DType::kInt8, DType::kFloat16, DType::kBFloat16,
        DType::kInt64, DType::kInt32, DType::kInt16, DType::kUInt16}) {
    std::vector<std::byte> raw(15 * dtype_size(dtype));
    for (std::size_t i = 0; i < raw.size(); ++i)
      raw[i] = static_cast<std::byte>(dtype == DType::kBool ? i % 2 : i * 37);
    Tensor tensor = Tensor::copy_of(dtype, {3, 5}, raw);
    std::swap(tensor.shape[0], tensor.shape[1]);
    std::swap(tensor.strides[0], tensor.strides[1]);
    content.tensors.emplace_back(std::string(dtype_name(dtype)), tensor);
  }
  content.tensors.emplace_back("scalar", Tensor::zeros(DType::kFloat32, {}));
  content.tensors.emplace_back("nothing", Tensor::zeros(DType::kFloat32, {0, 4}));
  write_safetensors(folder.file("a"), content);
  const LoadedFile loaded = read_tensor_file(folder.file("a"));
  EXPECT_EQ(loaded.format, "safetensors");
  ASSERT_EQ(loaded.root.size(), content.tensors.size());
  for (const auto& [name, tensor] : content.tensors) {
    EXPECT_TRUE(identical(loaded.root.at(name).as_tensor(), tensor)) << name;
    // Odd places in the file are made good by a copy.
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(loaded.root.at(name).as_tensor().data) % dtype_size(tensor.dtype), 0u);
  }
}

TEST(Safetensors, ForgedHeadersAreRefused) {
  const TemporaryFolder folder;
  const auto report_of = [&](const std::string& content) {
    try {
      read_safetensors(folder.write("bad", content));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), "CKP001");
      return error.report();
    }
    return std::string("accepted");
  };
  const auto one = [&](const std::string& entry, std::size_t data = 4) {
    return report_of(safetensors("{\"a\":" + entry + "}", data));
  };
  EXPECT_EQ(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})"), "accepted");
  EXPECT_EQ(one(R"({"dtype":"F32","shape":[0],"data_offsets":[0,0]})", 0), "accepted");
  EXPECT_THAT(report_of("{}"), HasSubstr("ends inside"));
  EXPECT_THAT(report_of(testing::u64(100) + "{}"), HasSubstr("ends inside"));
  EXPECT_THAT(report_of(testing::u64(std::uint64_t{1} << 63) + "{}"), HasSubstr("claims"));
  EXPECT_THAT(report_of(safetensors("{")), HasSubstr("JSON"));
  EXPECT_THAT(report_of(safetensors("[]")), HasSubstr("not a JSON object"));
  EXPECT_THAT(report_of(safetensors("{\"a\":" + std::string(1 << 20, '['))), HasSubstr("not valid"));
  EXPECT_THAT(report_of(safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                    R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                                    4)),
              HasSubstr("twice"));
  EXPECT_THAT(one(R"({"dtype":"F99","shape":[1],"data_offsets":[0,4]})"), HasSubstr("element type"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1})"), HasSubstr("exactly"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), HasSubstr("do not agree"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), HasSubstr("do not agree"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), HasSubstr("do not agree"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), HasSubstr("not valid"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"), HasSubstr("not valid"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", 0),
              HasSubstr("do not agree"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
              HasSubstr("do not agree"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]})"), HasSubstr("not valid"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 5), HasSubstr("belong to no tensor"));
  EXPECT_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8), HasSubstr("hole"));
  EXPECT_THAT(report_of(safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                    R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                                    4)),
              HasSubstr("overlaps"));
  EXPECT_THAT(report_of(safetensors(R"({"__metadata__":{"a":1}})")), HasSubstr("not text"));
  std::string many = "{";
  for (int i = 0; i < 20'005; ++i) {
    many += (i > 0 ? ",\"t" : "\"t") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  EXPECT_THAT(report_of(safetensors(many + "}")), HasSubstr("tensors"));
}

TEST(Safetensors, NamesThatCannotBeWritten) {
  const TemporaryFolder folder;
  const Tensor tensor = Tensor::zeros(DType::kFloat32, {1});
  for (const SafetensorsFile& content :
       {SafetensorsFile{{{"__metadata__", tensor}}, {}}, SafetensorsFile{{{"a", tensor}, {"a", tensor}}, {}}}) {
    EXPECT_THROW(write_safetensors(folder.file("x"), content), Error);
  }
  EXPECT_THAT(list_directory(folder.path()), ElementsAre());
}

}  // namespace
}  // namespace train_gpt_v2
