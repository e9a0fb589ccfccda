// torch.save files: everything the Python side wrote for the fixtures, and our own writing.
#include "train_gpt_v2/io/torch_file.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/io/safetensors.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

Tensor floats(std::vector<std::int64_t> shape, float first = 0) {
  Tensor tensor = Tensor::zeros(DType::kFloat32, std::move(shape));
  auto* out = reinterpret_cast<float*>(const_cast<std::byte*>(tensor.data));
  for (std::int64_t i = 0; i < tensor.numel(); ++i) out[i] = first + 0.25f * static_cast<float>(i);
  return tensor;
}

TEST(TorchFile, ReadsEveryTensorOfTheModel) {
  const LoadedFile loaded = read_tensor_file(data_path("fixtures/model/gpt.pth"));
  EXPECT_EQ(loaded.format, "torch");
  EXPECT_TRUE(loaded.root.is_ordered_dict());
  EXPECT_THAT(loaded.ignored, ElementsAre());
  const SafetensorsFile expected = read_safetensors(data_path("fixtures/model/gpt.safetensors"));
  ASSERT_EQ(loaded.root.size(), 215u);
  ASSERT_EQ(expected.tensors.size(), 215u);
  for (const auto& [name, tensor] : expected.tensors) {
    EXPECT_TRUE(identical(loaded.root.at(name).as_tensor(name), tensor)) << name;
  }
  // keys.txt lists the state dict in order: key, shape, dtype, kind.
  std::ifstream keys(data_path("fixtures/model/keys.txt"));
  std::string line;
  for (const Value::Entry& entry : loaded.root.entries()) {
    ASSERT_TRUE(std::getline(keys, line));
    EXPECT_EQ(entry.key.as_string(), line.substr(0, line.find('\t')));
  }
}

TEST(TorchFile, ReadsAModelUnderItsKey) {
  const LoadedFile loaded = read_tensor_file(data_path("fixtures/model/gpt_model_key.pth"));
  EXPECT_EQ(loaded.root.at("epoch").as_int(), 0);
  EXPECT_EQ(loaded.root.at("step").as_int(), 0);
  const Value& model = loaded.root.at("model");
  const LoadedFile bare = read_tensor_file(data_path("fixtures/model/gpt.pth"));
  EXPECT_TRUE(identical(model.at("gpt.h.0.attn.c_attn.base_layer.weight").as_tensor(),
                        bare.root.at("gpt.h.0.attn.c_attn.weight").as_tensor()));
  EXPECT_TRUE(model.contains("gpt.wte.weight"));
}

TEST(TorchFile, ReadsTheTrainersCheckpointWhole) {
  const LoadedFile loaded = read_tensor_file(data_path("fixtures/expected/trainer/latest.pth"));
  const Value& root = loaded.root;
  EXPECT_EQ(root.at("step").as_int(), 6);
  EXPECT_EQ(root.at("epoch").as_int(), 1);
  EXPECT_EQ(root.at("batch_idx").as_int(), 4);
  EXPECT_EQ(root.at("grad_accumulation").as_int(), 2);
  EXPECT_TRUE(root.at("scaler").is_none());
  EXPECT_EQ(root.at("pytorch_version").as_string(), "2.11.0+cu130");
  EXPECT_EQ(root.at("model").size(), 215u);

  const Value& optimizer = root.at("optimizer");
  const Value& group = optimizer.at("param_groups").items().front();
  EXPECT_DOUBLE_EQ(group.at("betas").items()[1].as_double(), 0.999);
  EXPECT_DOUBLE_EQ(group.at("weight_decay").as_double(), 0.01);
  EXPECT_EQ(group.at("amsgrad").as_bool(), false);
  const Value& state = optimizer.at("state");
  EXPECT_EQ(state.size(), 37u);
  for (const Value::Entry& entry : state.entries()) {
    const Tensor& step = entry.value.at("step").as_tensor();
    EXPECT_EQ(step.shape.size(), 0u);
    EXPECT_THAT(to_float_vector(step), ElementsAre(6.0f));
    EXPECT_EQ(entry.value.at("exp_avg").as_tensor().shape, entry.value.at("exp_avg_sq").as_tensor().shape);
  }
  EXPECT_EQ(root.at("scheduler").at("last_epoch").as_int(), 6);

  const Value& random = root.at("rng_state");
  EXPECT_EQ(random.at("torch_cpu").as_tensor().dtype, DType::kUInt8);
  EXPECT_THAT(random.at("torch_cpu").as_tensor().shape, ElementsAre(5056));
  const auto python = random.at("python").items();
  EXPECT_EQ(python[0].as_int(), 3);
  ASSERT_EQ(python[1].size(), 625u);
  const auto words = python[1].items();
  EXPECT_TRUE(std::any_of(words.begin(), words.end(), [](const Value& word) { return word.as_int() > 0x7FFFFFFF; }));
  const auto numpy = random.at("numpy").items();
  EXPECT_EQ(numpy[0].as_string(), "MT19937");
  ASSERT_TRUE(numpy[1].is_opaque());
  // numpy's array is kept as inert parts: (version, shape, dtype, fortran order, bytes).
  EXPECT_EQ(numpy[1].items().back().items()[4].as_bytes().size(), 624u * 4);
  EXPECT_THAT(loaded.ignored, ElementsAre(HasSubstr("rng_state.numpy[1]: object of class numpy")));
}

TEST(TorchFile, WritesWhatItReadBitByBit) {
  const TemporaryFolder folder;
  for (const char* name : {"model/gpt.pth", "model/gpt_model_key.pth", "expected/trainer/model_step6.pth"}) {
    const LoadedFile first = read_tensor_file(data_path(std::string("fixtures/") + name));
    write_torch_file(folder.file("a.pth"), first.root);
    EXPECT_EQ(file_size(folder.file("a.pth")), torch_file_size(first.root));
    const LoadedFile second = read_tensor_file(folder.file("a.pth"));
    EXPECT_TRUE(identical(first.root, second.root)) << name;
    write_torch_file(folder.file("b.pth"), second.root);
    EXPECT_EQ(sha256_of_file(folder.file("a.pth")), sha256_of_file(folder.file("b.pth")));
  }
}

Value every_kind() {
  Value root = Value::dict();
  root.set("none", Value()).set("yes", true).set("no", false);
  Value ints = Value::list();
  for (const std::int64_t value :
       {std::int64_t{0}, std::int64_t{255}, std::int64_t{256}, std::int64_t{65535}, std::int64_t{65536},
        std::int64_t{-1}, std::int64_t{0x7fffffff}, std::int64_t{0x80000000}, std::int64_t{-0x80000000LL},
        std::int64_t{-0x80000001LL}, std::numeric_limits<std::int64_t>::max(),
        std::numeric_limits<std::int64_t>::min()}) {
    ints.push_back(value);
  }
  root.set("ints", ints);
  root.set("big", Value::list({Value(std::uint64_t{18446744073709551615u}),
                               Value::big_int("-340282366920938463463374607431768211456"),
                               Value::big_int("170141183460469231731687303715884105728")}));
  root.set("floats", Value::tuple({0.1, -0.0, 1e300, std::numeric_limits<double>::infinity(), std::nan("")}));
  root.set("text", "ሰላም ለዓለም").set("bytes", Value::bytes(std::string("\0\x7f\x80\xff", 4)));
  root.set(7, Value::tuple()).set("empty", Value::dict()).set("nothing", Value::list());
  root.set("pair", Value::tuple({1, "two"})).set("four", Value::tuple({1, 2, 3, 4}));
  Value ordered = Value::ordered_dict();
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16, DType::kInt64,
                            DType::kInt32, DType::kInt16, DType::kInt8, DType::kUInt8, DType::kBool}) {
    std::vector<std::byte> raw(6 * dtype_size(dtype));
    for (std::size_t i = 0; i < raw.size(); ++i)
      raw[i] = static_cast<std::byte>(dtype == DType::kBool ? i % 2 : i * 37);
    ordered.set(dtype_name(dtype), Tensor::copy_of(dtype, {2, 3}, raw));
  }
  ordered.set("scalar", floats({}, 3)).set("empty", floats({0, 5}));
  root.set("tensors", ordered);
  return root;
}

TEST(TorchFile, KeepsEveryKindOfValue) {
  const TemporaryFolder folder;
  const Value root = every_kind();
  write_torch_file(folder.file("a.pth"), root);
  const LoadedFile loaded = read_tensor_file(folder.file("a.pth"));
  EXPECT_TRUE(identical(loaded.root, root));
  EXPECT_THAT(loaded.ignored, ElementsAre());
  EXPECT_EQ(file_size(folder.file("a.pth")), torch_file_size(root));
}

TEST(TorchFile, WritesSharedMemoryOnce) {
  const TemporaryFolder folder;
  const Tensor whole = floats({100, 100});
  Tensor row = whole;  // row 3 and, as a view with strides, column 2
  row.shape = {100};
  row.strides = {1};
  row.data += 300 * sizeof(float);
  Tensor column = whole;
  column.shape = {100};
  column.strides = {100};
  column.data += 2 * sizeof(float);
  Value root = Value::dict();
  root.set("row", row).set("column", column).set("whole", whole).set("again", whole);
  write_torch_file(folder.file("a.pth"), root);
  EXPECT_LT(file_size(folder.file("a.pth")), 42'000u);
  const LoadedFile loaded = read_tensor_file(folder.file("a.pth"));
  EXPECT_TRUE(identical(loaded.root, root));
  EXPECT_EQ(loaded.root.at("again").as_tensor().data, loaded.root.at("whole").as_tensor().data);
  EXPECT_THAT(to_float_vector(loaded.root.at("column").as_tensor())[1], 25.5f);
}

TEST(TorchFile, TensorsOutliveTheReader) {
  Tensor tensor;
  {
    const LoadedFile loaded = read_tensor_file(data_path("fixtures/model/gpt.pth"));
    tensor = loaded.root.at("final_norm.weight").as_tensor();
  }
  EXPECT_TRUE(std::isfinite(to_float_vector(tensor)[0]));
}

TEST(TorchFile, RefusesToWriteWhatTorchCouldNotRead) {
  const TemporaryFolder folder;
  const auto code_of = [&](const Value& root) {
    try {
      write_torch_file(folder.file("a.pth"), root);
    } catch (const Error& error) {
      return error.code();
    }
    return std::string("none");
  };
  EXPECT_EQ(code_of(Value::dict().set("x", Value::opaque("os.system"))), "CKP003");
  EXPECT_EQ(code_of(Value::dict().set("x", Tensor::zeros(DType::kUInt16, {2}))), "CKP003");
  EXPECT_EQ(code_of(Value::dict().set(1.5, 1)), "CKP003");
  EXPECT_EQ(code_of(Value::dict().set("x", "\xff")), "CKP003");
  EXPECT_THAT(list_directory(folder.path()), ElementsAre());
}

}  // namespace
}  // namespace train_gpt_v2
