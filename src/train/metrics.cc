#include "train_gpt_v2/train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxMetricsBytes = std::uint64_t{4} << 30;

bool says(const nlohmann::json& line, const char* key, std::string_view value) {
  const auto found = line.find(key);
  return found != line.end() && found->is_string() && found->get_ref<const std::string&>() == value;
}

bool of_validation(const nlohmann::json& line) {
  return says(line, "type", "validation") || says(line, "event", "validation_cost") || says(line, "event", "best");
}

// The lines of `content` whose step is at most `last_step`; one that is torn or no JSON is left out.
std::string kept_lines(const std::string& content, std::int64_t last_step, bool validation_due) {
  std::string kept;
  std::size_t begin = 0;
  while (begin < content.size()) {
    const std::size_t end = content.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = content.substr(begin, end - begin);
    const auto parsed = nlohmann::json::parse(line, nullptr, false);
    begin = end + 1;
    if (!parsed.is_object()) continue;
    const auto found = parsed.find("step");
    const std::int64_t step = found != parsed.end() && found->is_number() ? found->get<std::int64_t>() : 0;
    if (step > last_step || (validation_due && step == last_step && of_validation(parsed))) continue;
    kept += line + "\n";
  }
  return kept;
}

double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, std::int64_t last_step, bool validation_due) : path_(path) {
  cut(last_step, validation_due);
}

MetricsLog::~MetricsLog() {
  if (fd_ >= 0) ::close(fd_);
}

void MetricsLog::open() {
  if (path_.empty()) return;
  fd_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0 && !reported_) {
    log_warning("metrics", "cannot write ", path_, ": ", std::strerror(errno), "; training goes on without it");
    reported_ = true;
  }
}

void MetricsLog::cut(std::int64_t last_step, bool validation_due) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  if (!path_.empty() && file_exists(path_)) {
    const std::string content = read_file(path_, kMaxMetricsBytes);
    const std::string kept = kept_lines(content, last_step, validation_due);
    if (kept.size() != content.size()) write_file_atomically(path_, kept);
  }
  open();
}

void MetricsLog::write(const OrderedJson& line) {
  if (path_.empty()) return;
  OrderedJson full = OrderedJson::object();
  full["v"] = 1;
  for (const auto& [key, value] : line.items()) full[key] = value;
  full["time"] = unix_time();
  // A path need not be UTF-8, and training must not end over its name.
  const std::string text = dump_json(full) + "\n";
  if (fd_ < 0) open();
  if (fd_ < 0) return;
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t wrote = file_ops().write(fd_, text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) break;
    done += static_cast<std::size_t>(wrote);
  }
  if (done == text.size()) return;
  if (!reported_) {
    log_warning("metrics", "cannot write ", path_, ": ", std::strerror(errno), "; training goes on without it");
    reported_ = true;
  }
  // Half a line would spoil the next one as well.
  if (done > 0) file_ops().truncate(fd_, ::lseek(fd_, 0, SEEK_END) - static_cast<off_t>(done));
}

void MetricsLog::event(std::int64_t step, const std::string& name, OrderedJson details) {
  OrderedJson line = {{"type", "event"}, {"step", step}, {"event", name}};
  for (const auto& [key, value] : details.items()) line[key] = value;
  write(line);
}

nlohmann::json TrainMeters::save_state() const {
  return {{"loss_sum", loss_sum},
          {"text_loss_sum", text_loss_sum},
          {"mel_loss_sum", mel_loss_sum},
          {"mel_top1_count", mel_top1_count},
          {"text_tokens", text_tokens},
          {"mel_tokens", mel_tokens},
          {"positions", positions},
          {"padded_positions", padded_positions},
          {"steps", steps},
          {"clipped", clipped},
          {"skipped", skipped},
          {"imbalance_sum", imbalance_sum},
          {"step_seconds", step_seconds},
          {"wait_seconds", wait_seconds}};
}

void TrainMeters::load_state(const nlohmann::json& state) {
  *this = TrainMeters{};
  loss_sum = state.value("loss_sum", 0.0);
  text_loss_sum = state.value("text_loss_sum", 0.0);
  mel_loss_sum = state.value("mel_loss_sum", 0.0);
  mel_top1_count = state.value("mel_top1_count", 0.0);
  text_tokens = state.value("text_tokens", std::int64_t{0});
  mel_tokens = state.value("mel_tokens", std::int64_t{0});
  positions = state.value("positions", std::int64_t{0});
  padded_positions = state.value("padded_positions", std::int64_t{0});
  steps = state.value("steps", std::int64_t{0});
  clipped = state.value("clipped", std::int64_t{0});
  skipped = state.value("skipped", std::int64_t{0});
  imbalance_sum = state.value("imbalance_sum", 0.0);
  step_seconds = state.value("step_seconds", 0.0);
  wait_seconds = state.value("wait_seconds", 0.0);
}

}  // namespace train_gpt_v2
