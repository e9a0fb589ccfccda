// Every byte of what we write, as Python reads it.
#include <gmock/gmock.h>

#include <cmath>

#include "support/python_reader.h"
#include "support/test_files.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::describe;
using testing::PythonReading;
using testing::read_with_python;
using testing::TemporaryFolder;

// A whole trainer checkpoint of Python's, without what only Python's classes can hold.
Value trainer_checkpoint() {
  const LoadedFile loaded = read_tensor_file(data_path("fixtures/expected/trainer/latest.pth"));
  Value root = Value::dict();
  for (const Value::Entry& entry : loaded.root.entries()) {
    if (entry.key.as_string() != "rng_state") root.set(entry.key, entry.value);
  }
  return root;
}

Value odd_values() {
  Value root = Value::dict();
  root.set("none", Value()).set("flags", Value::tuple({true, false})).set("empty", Value::tuple());
  root.set("ints", Value::list({0, 255, 256, 65535, 65536, -1, -129, 0x7fffffff, 0x80000000u,
                                std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::uint64_t>::max(),
                                Value::big_int("-170141183460469231731687303715884105729")}));
  root.set("floats", Value::list({0.1, -0.0, 5e-324, std::numeric_limits<double>::infinity(), std::nan("")}));
  root.set("text", "ሰላም 🙂 \n\"").set("bytes", Value::bytes(std::string("\0\x7f\x80\xff", 4)));
  root.set(3, Value::dict().set(-1, "minus").set(70000, Value::list()));
  root.set("same", Value::list({"ሰላም", "ሰላም", "ሰላም"}));
  Value tensors = Value::ordered_dict();
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16, DType::kInt64,
                            DType::kInt32, DType::kInt16, DType::kInt8, DType::kUInt8, DType::kBool}) {
    std::vector<std::byte> raw(24 * dtype_size(dtype));
    for (std::size_t i = 0; i < raw.size(); ++i)
      raw[i] = static_cast<std::byte>(dtype == DType::kBool ? i % 2 : i * 37);
    Tensor tensor = Tensor::copy_of(dtype, {2, 3, 4}, raw);
    tensors.set(dtype_name(dtype), tensor);
    tensor.shape = {4, 2};  // a view: [:, 1, :] transposed
    tensor.strides = {1, 12};
    tensor.data += 4 * dtype_size(dtype);
    tensors.set(std::string(dtype_name(dtype)) + " view", tensor);
  }
  tensors.set("scalar", Tensor::zeros(DType::kFloat32, {})).set("empty", Tensor::zeros(DType::kFloat32, {3, 0}));
  for (int i = 0; i < 300; ++i)
    tensors.set("more" + std::to_string(i), Tensor::zeros(DType::kInt8, {1, 1, 1, i % 3, 1}));
  return root.set("tensors", tensors);
}

TEST(PythonReader, StandardLibraryReadsEveryByte) {
  const TemporaryFolder folder;
  for (const Value& root : {trainer_checkpoint(), odd_values()}) {
    write_torch_file(folder.file("a.pth"), root);
    const PythonReading reading = read_with_python(folder.file("a.pth"));
    if (reading.status == 127) GTEST_SKIP() << "no python3 here";
    ASSERT_EQ(reading.status, 0);
    EXPECT_EQ(reading.content, describe(root));
  }
}

TEST(PythonReader, TorchReadsEveryByteAndGivesItBack) {
  const TemporaryFolder folder;
  Value both = Value::dict();
  both.set("checkpoint", trainer_checkpoint()).set("odd", odd_values());
  write_torch_file(folder.file("a.pth"), both);
  const PythonReading reading = read_with_python(folder.file("a.pth"), folder.file("copy.pth"));
  if (reading.status == 77 || reading.status == 127) GTEST_SKIP() << "torch cannot be imported here";
  ASSERT_EQ(reading.status, 0);
  EXPECT_EQ(reading.content, describe(both));
  const LoadedFile copy = read_tensor_file(folder.file("copy.pth"));
  EXPECT_TRUE(identical(copy.root, both));
}

}  // namespace
}  // namespace train_gpt_v2
