#include "train_gpt_v2/train/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kFlushBytes = 256 * 1024;
constexpr std::size_t kMaxBuffer = 16 * 1024 * 1024;  // kept while the folder cannot be written; beyond it, dropped

constexpr std::array<std::uint32_t, 256> make_crc32c_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    table[i] = crc;
  }
  return table;
}
constexpr auto kCrc32c = make_crc32c_table();

// The protobuf wire format, as far as Event needs it.
void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
template <typename T>
void append_little_endian(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}
void put_varint(std::string& out, int field, std::int64_t value) {
  append_varint(out, static_cast<std::uint64_t>(field) << 3);
  append_varint(out, static_cast<std::uint64_t>(value));
}
void put_double(std::string& out, int field, double value) {
  append_varint(out, static_cast<std::uint64_t>(field) << 3 | 1);
  append_little_endian(out, value);
}
void put_float(std::string& out, int field, float value) {
  append_varint(out, static_cast<std::uint64_t>(field) << 3 | 5);
  append_little_endian(out, value);
}
void put_bytes(std::string& out, int field, std::string_view bytes) {
  append_varint(out, static_cast<std::uint64_t>(field) << 3 | 2);
  append_varint(out, bytes.size());
  out += bytes;
}
void put_doubles(std::string& out, int field, const std::vector<double>& values) {
  std::string packed;
  for (const double value : values) append_little_endian(packed, value);
  put_bytes(out, field, packed);
}

std::string record(std::string_view data) {
  std::string out;
  append_little_endian(out, static_cast<std::uint64_t>(data.size()));
  append_little_endian(out, masked_crc32c(out));
  out += data;
  append_little_endian(out, masked_crc32c(data));
  return out;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Letters, digits, '-' and '.' of the host's name: it becomes part of a file name.
std::string host_name() {
  char name[65] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return "localhost";
  std::string out;
  for (const char c : std::string_view(name)) {
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.') out += c;
  }
  return out.empty() ? "localhost" : out;
}

std::string session_start() {
  std::string log, payload;
  put_varint(log, 1, 1);  // SessionLog.status = START
  put_bytes(payload, 7, log);
  return payload;
}

}  // namespace

std::uint32_t crc32c(std::string_view data) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : data) crc = crc >> 8 ^ kCrc32c[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view data) {
  const std::uint32_t crc = crc32c(data);
  return std::rotr(crc, 15) + 0xA282EAD8u;
}

TensorBoardWriter::TensorBoardWriter(std::string folder, std::int64_t first_step, std::chrono::seconds flush_interval)
    : folder_(std::move(folder)), flush_interval_(flush_interval), flushed_at_(std::chrono::steady_clock::now()) {
  std::string version;
  put_bytes(version, 3, "brain.Event:2");
  std::lock_guard<std::mutex> guard(mutex_);
  add_event(0, version);
  // Also at step 0: TensorBoard takes the first mark of a run as its start and only later ones as restarts.
  add_event(std::max<std::int64_t>(first_step, 0), session_start());
  preamble_ = buffer_.size();
}

TensorBoardWriter::~TensorBoardWriter() {
  flush();
  if (fd_ >= 0) file_ops().close(fd_);
}

void TensorBoardWriter::scalar(std::string_view tag, std::int64_t step, double value) {
  std::string encoded;
  put_bytes(encoded, 1, tag);
  put_float(encoded, 2, static_cast<float>(value));
  add_value(step, encoded);
}

void TensorBoardWriter::text(std::string_view tag, std::int64_t step, std::string_view markdown) {
  std::string dimension, shape, tensor, plugin, metadata, encoded;
  put_varint(dimension, 1, 1);
  put_bytes(shape, 2, dimension);
  put_varint(tensor, 1, 7);  // DT_STRING
  put_bytes(tensor, 2, shape);
  put_bytes(tensor, 8, markdown);
  put_bytes(plugin, 1, "text");
  put_bytes(metadata, 1, plugin);
  put_bytes(encoded, 1, tag);
  put_bytes(encoded, 8, tensor);
  put_bytes(encoded, 9, metadata);
  add_value(step, encoded);
}

void TensorBoardWriter::image(std::string_view tag, std::int64_t step, std::string_view png, std::uint32_t width,
                              std::uint32_t height) {
  std::string picture, encoded;
  put_varint(picture, 1, height);
  put_varint(picture, 2, width);
  put_varint(picture, 3, 3);  // RGB
  put_bytes(picture, 4, png);
  put_bytes(encoded, 1, tag);
  put_bytes(encoded, 4, picture);
  add_value(step, encoded);
}

void TensorBoardWriter::histogram(std::string_view tag, std::int64_t step, std::span<const double> values,
                                  std::size_t bins) {
  double low = INFINITY, high = -INFINITY, sum = 0, squares = 0;
  std::int64_t count = 0;
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
    sum += value;
    squares += value * value;
    ++count;
  }
  if (count == 0) return;
  bins = low < high ? std::clamp<std::size_t>(bins, 1, 1000) : 1;
  std::vector<double> limits, buckets(bins, 0.0);
  for (std::size_t i = 1; i < bins; ++i) {
    limits.push_back(low + (high - low) * static_cast<double>(i) / static_cast<double>(bins));
  }
  limits.push_back(high);
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    const auto bin = std::lower_bound(limits.begin(), limits.end() - 1, value) - limits.begin();
    buckets[static_cast<std::size_t>(bin)] += 1;
  }
  std::string histo, encoded;
  put_double(histo, 1, low);
  put_double(histo, 2, high);
  put_double(histo, 3, static_cast<double>(count));
  put_double(histo, 4, sum);
  put_double(histo, 5, squares);
  put_doubles(histo, 6, limits);
  put_doubles(histo, 7, buckets);
  put_bytes(encoded, 1, tag);
  put_bytes(encoded, 5, histo);
  add_value(step, encoded);
}

void TensorBoardWriter::audio(std::string_view tag, std::int64_t step, std::string_view wav, double rate,
                              std::int64_t channels, std::int64_t frames) {
  std::string sound, encoded;
  put_float(sound, 1, static_cast<float>(rate));
  put_varint(sound, 2, channels);
  put_varint(sound, 3, frames);
  put_bytes(sound, 4, wav);
  put_bytes(sound, 5, "audio/wav");
  put_bytes(encoded, 1, tag);
  put_bytes(encoded, 6, sound);
  add_value(step, encoded);
}

void TensorBoardWriter::purge_from(std::int64_t first_step) {
  std::lock_guard<std::mutex> guard(mutex_);
  add_event(first_step, session_start());
}

void TensorBoardWriter::flush() {
  std::lock_guard<std::mutex> guard(mutex_);
  flush_locked();
}

std::string TensorBoardWriter::path() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return path_;
}

void TensorBoardWriter::add_value(std::int64_t step, std::string_view value) {
  std::string summary, payload;
  put_bytes(summary, 1, value);
  put_bytes(payload, 5, summary);
  std::lock_guard<std::mutex> guard(mutex_);
  add_event(step, payload);
  if (buffer_.size() >= kFlushBytes || std::chrono::steady_clock::now() - flushed_at_ >= flush_interval_)
    flush_locked();
}

void TensorBoardWriter::add_event(std::int64_t step, std::string_view payload) {
  std::string event;
  put_double(event, 1, now());
  put_varint(event, 2, step);
  event += payload;
  buffer_ += record(event);
}

bool TensorBoardWriter::open_locked() {
  if (fd_ >= 0) return true;
  static std::atomic<int> opened{0};  // two writers of one process in the same second need two names
  try {
    make_directories(folder_);
  } catch (const Error& failure) {
    complain(concat(failure.message(), " (", folder_, ")"));
    return false;
  }
  path_ = path_join(folder_, concat("events.out.tfevents.", static_cast<std::int64_t>(now()), ".", host_name(), ".",
                                    ::getpid(), ".", opened++));
  fd_ = file_ops().open(path_, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) {
    complain(concat("cannot create ", path_, ": ", std::strerror(errno)));
    path_.clear();
    return false;
  }
  return true;
}

void TensorBoardWriter::flush_locked() {
  flushed_at_ = std::chrono::steady_clock::now();
  if (buffer_.empty()) return;
  if (!open_locked()) return drop_when_too_much();
  std::size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t wrote = file_ops().pwrite(fd_, buffer_.data() + done, buffer_.size() - done,
                                            static_cast<off_t>(written_) + static_cast<off_t>(done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) break;
    done += static_cast<std::size_t>(wrote);
  }
  if (done == buffer_.size()) {
    written_ += done;
    buffer_.clear();
    return;
  }
  complain(concat("cannot write ", path_, ": ", std::strerror(errno)));
  // Half a record would hide everything behind it from TensorBoard; the next flush writes at the same place again.
  file_ops().truncate(fd_, static_cast<off_t>(written_));
  drop_when_too_much();
}

void TensorBoardWriter::drop_when_too_much() {
  if (buffer_.size() > kMaxBuffer) buffer_.resize(written_ == 0 ? preamble_ : 0);
}

void TensorBoardWriter::complain(const std::string& what) {
  if (complained_) return;
  complained_ = true;
  log_warning("tensorboard", what, "; training goes on, the curves in TensorBoard may have gaps");
}

}  // namespace train_gpt_v2
