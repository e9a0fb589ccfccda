#include "train_gpt_v2/app/export_command.h"

#include "support/error_of.h"
#include "support/test_files.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::TemporaryFolder;

ModelRequest fixture_model() {
  ModelRequest request;
  request.checkpoint = data_path("fixtures/expected/trainer/latest.pth");
  request.config = data_path("export/fixture.json");
  return request;
}

TEST(Export, GivesBackEveryTensorBitByBit) {
  const TemporaryFolder folder;
  for (const char* format : {"gpt.pth", "safetensors"}) {
    ExportRequest request{fixture_model(), folder.file(std::string("out/") + format), format, ""};
    run_export(request);
    const LoadedFile exported = read_tensor_file(request.output);
    const LoadedFile source = read_tensor_file(request.model.checkpoint);
    std::size_t tensors = 0;
    for (const auto& [key, value] : source.root.at("model").entries()) {
      EXPECT_TRUE(identical(value.as_tensor(), exported.root.at(key.as_string()).as_tensor())) << key.as_string();
      ++tensors;
    }
    EXPECT_EQ(tensors, 215u);
    EXPECT_EQ(exported.root.contains("optimizer"), false);
  }
}

TEST(Export, KeepsTheTypeOfEachTensor) {
  const TemporaryFolder folder;
  const LoadedFile source = read_tensor_file(fixture_model().checkpoint);
  Value mixed = Value::ordered_dict();
  const std::string half = source.root.at("model").entries()[0].key.as_string();
  for (const auto& [key, value] : source.root.at("model").entries()) {
    const at::Tensor tensor = tensor_to_torch(value.as_tensor());
    mixed.set(key, torch_to_tensor(key.as_string() == half ? tensor.to(at::kHalf) : tensor));
  }
  write_torch_file(folder.file("mixed.pth"), mixed);
  ExportRequest request{fixture_model(), folder.file("out.pth"), "gpt.pth", ""};
  request.model.checkpoint = folder.file("mixed.pth");
  run_export(request);
  const LoadedFile exported = read_tensor_file(request.output);
  for (const auto& [key, value] : mixed.entries()) {
    EXPECT_TRUE(identical(value.as_tensor(), exported.root.at(key.as_string()).as_tensor())) << key.as_string();
  }
}

TEST(Export, CastsWhenAsked) {
  const TemporaryFolder folder;
  const ExportRequest request{fixture_model(), folder.file("half.pth"), "gpt.pth", "fp16"};
  run_export(request);
  const LoadedFile exported = read_tensor_file(request.output);
  EXPECT_EQ(exported.root.entries().size(), 215u);
  for (const auto& [key, value] : exported.root.entries()) {
    EXPECT_EQ(value.as_tensor().dtype, DType::kFloat16) << key.as_string();
  }
}

TEST(Export, RefusesAFileWithoutTheConditioners) {
  const TemporaryFolder folder;
  ExportRequest request{fixture_model(), folder.file("partial.pth"), "gpt.pth", ""};
  request.model.checkpoint = data_path("fixtures/model/gpt_model_key.pth");
  EXPECT_THROW(run_export(request), Error);
  EXPECT_FALSE(std::filesystem::exists(request.output));
}

TEST(Export, EmaWeightsMustBeThere) {
  const TemporaryFolder folder;
  ExportRequest request{fixture_model(), folder.file("ema.pth"), "gpt.pth", ""};
  request.model.weights = "ema";
  const Error error = testing::error_of([&] { run_export(request); });
  EXPECT_EQ(error.code(), "CKP014");
  EXPECT_EQ(error.status(), ExitStatus::kMissingInput);
  EXPECT_EQ(error.message(), "this checkpoint holds no EMA weights");
  EXPECT_EQ(error.place(), request.model.checkpoint);
  EXPECT_EQ(error.hint(), "use --weights raw");
}

// What a resume needs is not in an export: the checkpoint would be lost.
TEST(Export, NeverWritesOverItsInputOrAFolder) {
  const TemporaryFolder folder;
  ExportRequest request = {fixture_model(), folder.file("link.pth"), "gpt.pth", ""};
  const std::string checkpoint = folder.file("latest.pth");
  std::filesystem::copy_file(request.model.checkpoint, checkpoint);
  std::filesystem::create_hard_link(checkpoint, request.output);
  request.model.checkpoint = checkpoint;
  EXPECT_EQ(testing::error_of([&] { run_export(request); }).code(), "ARG001");
  EXPECT_EQ(std::filesystem::hard_link_count(checkpoint), 2u);
  request.output = folder.path();
  const Error error = testing::error_of([&] { run_export(request); });
  EXPECT_EQ(error.status(), ExitStatus::kCannotCreate);
  EXPECT_EQ(error.hint(), "name a file in it");
}

}  // namespace
}  // namespace train_gpt_v2
