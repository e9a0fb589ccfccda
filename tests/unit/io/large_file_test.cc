// Past 4 GiB: ZIP64 sizes and offsets, written and read without 4 GiB of memory or disk (a sparse file).
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "support/python_reader.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::TemporaryFolder;

// Leaves holes where only zeros are written, and reserves nothing.
class SparseFileOps : public FileOps {
 public:
  ssize_t write(int fd, const void* data, std::size_t size) override {
    const char* bytes = static_cast<const char*>(data);
    if (size >= 4096 && bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0) {
      return ::lseek(fd, static_cast<off_t>(size), SEEK_CUR) < 0 ? -1 : static_cast<ssize_t>(size);
    }
    return FileOps::write(fd, data, size);
  }
  int allocate(int, off_t) override { return EOPNOTSUPP; }
};

TEST(LargeFile, Zip64SizesAndOffsets) {
  constexpr std::size_t kBytes = (std::size_t{4} << 30) + 4096;
  // Untouched pages of an anonymous mapping all read as one page of zeros.
  void* zeros = ::mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (zeros == MAP_FAILED) GTEST_SKIP() << "no address space";
  Tensor large;
  large.dtype = DType::kFloat32;
  large.shape = {static_cast<std::int64_t>(kBytes / 4096), 1024};
  large.strides = {1024, 1};
  large.data = static_cast<const std::byte*>(zeros);
  large.owner = std::shared_ptr<const void>(zeros, [](const void* p) { ::munmap(const_cast<void*>(p), kBytes); });
  const Tensor behind = Tensor::copy_of(DType::kUInt8, {4}, std::as_bytes(std::span("last", 4)));
  Value root = Value::dict();
  root.set("large", large).set("behind", behind);

  const TemporaryFolder folder;
  const std::string path = folder.file("large.pth");
  {
    SparseFileOps sparse;
    const ScopedFileOps scope(sparse);
    write_torch_file(path, root);
  }
  EXPECT_EQ(file_size(path), torch_file_size(root));
  EXPECT_GT(file_size(path), kBytes);
  const LoadedFile loaded = read_tensor_file(path, false);  // another 4 GiB of checksums would show nothing new
  EXPECT_EQ(loaded.root.at("large").as_tensor().shape, large.shape);
  EXPECT_TRUE(identical(loaded.root.at("behind").as_tensor(), behind));
  EXPECT_EQ(loaded.root.at("large").as_tensor().data[kBytes - 1], std::byte{0});
}

}  // namespace
}  // namespace train_gpt_v2
