// The writing half of torch_file.h: which bytes become which storage, and the records around them.

#include <algorithm>
#include <numeric>
#include <optional>

#include "pickle_writer.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"
#include "zip_writer.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kMaxStorages = 49'990;  // the reader's limit of entries, less the records without tensors

// The memory of all tensors as storages: views that overlap (same element type) share one, as torch.save keeps them.
// Numbers follow the order of first use, so that they do not depend on addresses.
class StoragePlan {
 public:
  explicit StoragePlan(const Value& root) {
    visit_tensors(root, [this](const Tensor& tensor) { tensors_.push_back(&tensor); });
    merge();
    places_.resize(tensors_.size());
    std::vector<std::optional<std::uint64_t>> key_of_group(groups_.size());
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const Group& group = groups_[group_of_[i]];
      std::optional<std::uint64_t>& key = key_of_group[group_of_[i]];
      if (!key) {
        key = storages_.size();
        storages_.push_back({group.begin, static_cast<std::size_t>(group.end - group.begin)});
      }
      const auto item = static_cast<std::int64_t>(dtype_size(tensors_[i]->dtype));
      places_[i].key = *key;
      places_[i].elements = (group.end - group.begin) / item;
      places_[i].offset = group.end == group.begin ? 0 : (tensors_[i]->data - group.begin) / item;
    }
    if (storages_.size() > kMaxStorages) {
      throw Error("CKP003", concat("a file can hold ", kMaxStorages, " tensors, these are ", storages_.size()));
    }
  }

  const std::vector<StoragePlace>& places() const { return places_; }
  const std::vector<std::span<const std::byte>>& storages() const { return storages_; }

 private:
  struct Group {
    const std::byte* begin;
    const std::byte* end;
  };

  static const std::byte* end_of(const Tensor& tensor) {
    if (tensor.numel() == 0) return tensor.data;
    std::int64_t last = 0;
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      TGV2_CHECK(tensor.strides[i] >= 0);
      last += (tensor.shape[i] - 1) * tensor.strides[i];
    }
    return tensor.data + static_cast<std::size_t>(last + 1) * dtype_size(tensor.dtype);
  }

  void merge() {
    std::vector<std::size_t> order(tensors_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [this](std::size_t a, std::size_t b) {
      const Tensor &x = *tensors_[a], &y = *tensors_[b];
      if (x.dtype != y.dtype) return x.dtype < y.dtype;
      return x.data != y.data ? std::less<>()(x.data, y.data) : a < b;
    });
    group_of_.resize(tensors_.size());
    const Tensor* previous = nullptr;
    for (const std::size_t i : order) {
      const Tensor& tensor = *tensors_[i];
      const std::byte* end = end_of(tensor);
      if (end == tensor.data) {  // empty: shares with nothing
        group_of_[i] = groups_.size();
        groups_.push_back({tensor.data, tensor.data});
        previous = nullptr;
        continue;
      }
      const bool joins = previous && previous->dtype == tensor.dtype && tensor.data < groups_.back().end &&
                         static_cast<std::size_t>(tensor.data - groups_.back().begin) % dtype_size(tensor.dtype) == 0;
      if (!joins) groups_.push_back({tensor.data, end});
      groups_.back().end = std::max(groups_.back().end, end);
      group_of_[i] = groups_.size() - 1;
      previous = &tensor;
    }
  }

  std::vector<const Tensor*> tensors_;
  std::vector<Group> groups_;
  std::vector<std::size_t> group_of_;  // by tensor
  std::vector<StoragePlace> places_;   // by tensor
  std::vector<std::span<const std::byte>> storages_;
};

// 40 digits, as torch's; two files of equal content have equal ones.
std::string serialization_id(std::span<const std::uint32_t> checksums) {
  std::uint64_t halves[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};  // FNV-1a from two starts
  std::string id;
  for (std::uint64_t& hash : halves) {
    for (const std::uint32_t checksum : checksums) hash = (hash ^ checksum) * 0x100000001b3u;
    const std::string digits = std::to_string(hash);
    id.append(20 - digits.size(), '0').append(digits);
  }
  return id;
}

// Everything that is to be written, in torch's order of records; tensors stay where they are.
class TorchArchive {
 public:
  explicit TorchArchive(const Value& root) : plan_(root) {
    std::size_t next = 0;
    description_ = write_pickle(root, [&](const Tensor&) { return plan_.places().at(next++); });
    add("data.pkl", description_);
    add(".format_version", "1");
    add(".storage_alignment", "64");
    add("byteorder", "little");
    for (std::size_t i = 0; i < plan_.storages().size(); ++i) {
      zip_.add(concat("archive/data/", i), plan_.storages()[i]);
    }
    add("version", "3\n");
    zip_.add_late("archive/.data/serialization_id", 40, serialization_id);
  }

  ZipWriter& zip() { return zip_; }

 private:
  void add(const char* name, std::string_view content) {
    zip_.add(concat("archive/", name), std::as_bytes(std::span(content.data(), content.size())));
  }

  StoragePlan plan_;
  std::string description_;
  ZipWriter zip_;
};

}  // namespace

std::uint64_t torch_file_size(const Value& root) {
  return TorchArchive(root).zip().file_size();
}

void write_torch_file(const std::string& path, const Value& root) {
  TorchArchive archive(root);
  AtomicFile file(path, archive.zip().file_size());
  archive.zip().write(file);
  file.commit();
}

}  // namespace train_gpt_v2
