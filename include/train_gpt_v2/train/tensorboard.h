#pragma once
// TensorBoard event files without TensorFlow or protobuf: a TFRecord stream of hand-encoded Event messages
// (tensorflow/core/util/event.proto, framework/summary.proto), file `events.out.tfevents.<time>.<host>.<pid>.<n>`.
//
// Records are buffered and written every `flush_interval` or when the buffer is full. Watching must never stop
// training: nothing here throws; a folder that cannot be written gives one warning, a failed write is cut back to the
// last whole record and tried again with later data. Every function may be called from any thread.

#include <chrono>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

namespace train_gpt_v2 {

// CRC-32C (Castagnoli), and the masked form TFRecord stores.
std::uint32_t crc32c(std::string_view data);
std::uint32_t masked_crc32c(std::string_view data);

class TensorBoardWriter {
 public:
  // `first_step` is the first step of this process: what an earlier process wrote for it and later steps is dropped by
  // TensorBoard. The file appears with the first flush.
  explicit TensorBoardWriter(std::string folder, std::int64_t first_step = 0,
                             std::chrono::seconds flush_interval = std::chrono::seconds(20));
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  void scalar(std::string_view tag, std::int64_t step, double value);
  // Shown as Markdown; indent by four spaces or fence what must stay verbatim.
  void text(std::string_view tag, std::int64_t step, std::string_view markdown);
  void image(std::string_view tag, std::int64_t step, std::string_view png, std::uint32_t width, std::uint32_t height);
  // Equal bins between the smallest and the largest finite value; without finite values nothing is written.
  void histogram(std::string_view tag, std::int64_t step, std::span<const double> values, std::size_t bins = 30);
  // `wav` is a whole RIFF file with `frames` samples per channel at `rate` hertz.
  void audio(std::string_view tag, std::int64_t step, std::string_view wav, double rate, std::int64_t channels,
             std::int64_t frames);

  // After a rollback inside the process: what was written for `first_step` and later is dropped by TensorBoard.
  void purge_from(std::int64_t first_step);
  void flush();
  // "" until the file exists.
  std::string path() const;

 private:
  void add_event(std::int64_t step, std::string_view payload);  // payload: Event's encoded fields but time and step
  void add_value(std::int64_t step, std::string_view value);    // value: one encoded Summary.Value
  void flush_locked();
  bool open_locked();
  void drop_when_too_much();
  void complain(const std::string& what);

  mutable std::mutex mutex_;
  std::string folder_;
  std::chrono::seconds flush_interval_;
  std::chrono::steady_clock::time_point flushed_at_;
  std::string path_;
  std::string buffer_;
  std::size_t preamble_ = 0;  // bytes of the version and the START mark, which must open the file
  int fd_ = -1;
  std::uint64_t written_ = 0;  // bytes of whole records in the file
  bool complained_ = false;
};

}  // namespace train_gpt_v2
