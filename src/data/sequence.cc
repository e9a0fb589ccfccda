#include "train_gpt_v2/data/sequence.h"

#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxOrderBytes = 4ULL << 30;
constexpr std::size_t kMaxOrderLine = 4 << 20;

}  // namespace

EpochSequence::EpochSequence(const Sampler& sampler, BatchCursor start, std::optional<std::uint64_t> end_epoch)
    : sampler_(sampler), cursor_(std::move(start)), end_epoch_(end_epoch) {
  plan_ = sampler_.plan(cursor_.epoch, cursor_.earlier);
  if (cursor_.batch > plan_.size()) {
    throw Error("CKP001", "the saved position lies beyond its epoch")
        .detail(concat("batch ", cursor_.batch, " of epoch ", cursor_.epoch, ", which has ", plan_.size(), " batches"))
        .fix("the data or the sampler changed: see --allow-change data and --allow-change order");
  }
}

void EpochSequence::begin_next_epoch() {
  cursor_.epoch += 1;
  cursor_.batch = 0;
  cursor_.earlier.clear();
  if (end_epoch_ && cursor_.epoch >= *end_epoch_) return;
  plan_ = upcoming_.valid() ? upcoming_.get() : sampler_.plan(cursor_.epoch);
  if (plan_.size() == 0) {
    throw Error("DAT008", "an epoch has no batch: sampler.drop_last leaves nothing")
        .detail(concat(sampler_.dataset().epoch_size(), " samples, batch size ", sampler_.settings().batch_size))
        .fix("set sampler.drop_last to false, or lower train.batch_size");
  }
}

std::optional<PlannedBatch> EpochSequence::next() {
  if (cursor_.batch == plan_.size() && (!end_epoch_ || cursor_.epoch < *end_epoch_)) begin_next_epoch();
  if (end_epoch_ && cursor_.epoch >= *end_epoch_) return std::nullopt;
  if (!upcoming_.valid() && (!end_epoch_ || cursor_.epoch + 1 < *end_epoch_)) {
    upcoming_ = std::async(std::launch::async, [this, epoch = cursor_.epoch + 1] { return sampler_.plan(epoch); });
  }
  const auto samples = plan_.batch(cursor_.batch);
  PlannedBatch planned{{samples.begin(), samples.end()}, cursor_.epoch, {}};
  cursor_.batch += 1;
  cursor_.consumed += 1;
  planned.after = cursor_;
  if (cursor_.batch == plan_.size()) {  // the end of an epoch and the start of the next are one position
    planned.after.epoch += 1;
    planned.after.batch = 0;
    planned.after.earlier.clear();
  }
  return planned;
}

ListSequence::ListSequence(BatchPlan plan, std::uint64_t first) : plan_(std::move(plan)), at_(first) {}

std::optional<PlannedBatch> ListSequence::next() {
  if (at_ >= plan_.size()) return std::nullopt;
  const auto samples = plan_.batch(at_);
  ++at_;
  return PlannedBatch{{samples.begin(), samples.end()}, 0, {0, at_, at_, {}}};
}

OrderFile read_order_file(const std::string& path, const Dataset& dataset) {
  const MappedFile file(path, kMaxOrderBytes);
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  OrderFile order;
  order.hash = sha256(bytes);
  long line_number = 0;
  const auto refuse = [&](std::string what, std::string fix) {
    throw Error("DAT009", std::move(what)).where(path, line_number).fix(std::move(fix));
  };
  std::vector<std::uint32_t> batch;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t newline = std::min(bytes.find('\n', at), bytes.size());
    const std::string_view line = trim(bytes.substr(at, newline - at));
    at = newline + 1;
    ++line_number;
    if (line.empty() && trim(bytes.substr(std::min(at, bytes.size()))).empty()) break;
    if (line.size() > kMaxOrderLine)
      refuse("a line is longer than 4 MiB", "each line holds the ids of one micro-batch");
    const auto ids = nlohmann::json::parse(line, nullptr, false);
    if (!ids.is_array() || ids.empty()) {
      refuse("a line of an order file is an array of at least one pair id", "write [\"id\", \"id\"] on every line");
    }
    batch.clear();
    for (const auto& id : ids) {
      if (!id.is_string()) refuse("a pair id is not a string", "write [\"id\", \"id\"] on every line");
      try {
        batch.push_back(dataset.find(id.get_ref<const std::string&>()));
      } catch (const Error& error) {
        Error located = Error(error.code(), error.message()).where(path, line_number);
        for (const std::string& detail : error.details()) std::move(located).detail(detail);
        throw std::move(located).fix(error.hint());
      }
    }
    order.plan.add(batch);
  }
  if (order.plan.size() == 0) refuse("the order file is empty", "write at least one line");
  return order;
}

}  // namespace train_gpt_v2
