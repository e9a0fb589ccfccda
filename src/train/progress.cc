#include "train_gpt_v2/train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr std::int64_t kMemory = 500;  // steps the mean remembers

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::size_t terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1u : 79u;
}

// human_duration without fractions, which would only flicker here.
std::string whole_duration(double seconds) {
  return seconds < 59.5 ? concat(std::lround(seconds), "s") : human_duration(std::round(seconds));
}

std::string scientific(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", value);
  return text;
}

std::string position(const StepReport& report, std::int64_t total) {
  std::string text = human_count(static_cast<std::uint64_t>(std::max<std::int64_t>(report.step, 0)));
  if (total <= 0) return text;
  // Rounded down: 100.0 % must mean that the last step is done.
  const double percent = std::floor(1000.0 * static_cast<double>(report.step) / static_cast<double>(total)) / 10;
  return concat(text, "/", human_count(static_cast<std::uint64_t>(total)), " ", fixed(std::min(percent, 100.0), 1),
                "%");
}

std::string losses(const StepReport& report) {
  if (std::isnan(report.loss)) return {};
  std::string text = concat("loss ", fixed(report.loss, 3));
  std::vector<std::string> parts;
  if (!std::isnan(report.text_loss)) parts.push_back(concat("text ", fixed(report.text_loss, 3)));
  if (!std::isnan(report.mel_loss)) parts.push_back(concat("mel ", fixed(report.mel_loss, 3)));
  return parts.empty() ? text : concat(text, " (", join(parts, ", "), ")");
}

std::size_t columns_of(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string bar(std::int64_t step, std::int64_t total, std::size_t width) {
  const double share = std::clamp(static_cast<double>(step) / static_cast<double>(total), 0.0, 1.0);
  const auto filled = static_cast<std::size_t>(share * static_cast<double>(width));
  std::string text;
  for (std::size_t i = 0; i < width; ++i) text += i < filled ? "━" : "╌";
  return text;
}

}  // namespace

std::string short_count(double count) {
  if (!(count >= 0) || std::isinf(count)) return "?";
  const char* unit = "";
  for (const char* next : {"k", "M", "G", "T"}) {
    if (count < 999.5) break;
    count /= 1000;
    unit = next;
  }
  const int decimals = *unit == '\0' || count >= 99.95 ? 0 : count >= 9.995 ? 1 : 2;
  return fixed(count, decimals) + unit;
}

std::string format_figures(const StepReport& report) {
  std::vector<std::string> parts;
  if (const std::string text = losses(report); !text.empty()) parts.push_back(text);
  if (!std::isnan(report.learning_rate)) parts.push_back(concat("lr ", scientific(report.learning_rate)));
  if (!std::isnan(report.grad_norm)) parts.push_back(concat("grad ", fixed(report.grad_norm, 2)));
  if (report.tokens_per_second > 0) parts.push_back(concat(short_count(report.tokens_per_second), " tok/s"));
  return join(parts, "  ");
}

std::string format_line(const StepReport& report, std::int64_t total_steps, double step_seconds, double eta_seconds) {
  std::vector<std::string> parts{concat("step ", position(report, total_steps)), concat("epoch ", report.epoch)};
  if (const std::string figures = format_figures(report); !figures.empty()) parts.push_back(figures);
  if (step_seconds >= 0) parts.push_back(concat(fixed(step_seconds, step_seconds < 10 ? 3 : 1), " s/step"));
  if (eta_seconds >= 0) parts.push_back(concat("ETA ", whole_duration(eta_seconds)));
  return join(parts, "  ");
}

std::string format_bar(const StepReport& report, std::int64_t total_steps, double eta_seconds, const std::string& phase,
                       std::size_t columns) {
  struct Part {
    std::string text;
    int importance;  // the part with the smallest number goes first when the line is too long
  };
  std::vector<Part> parts{{"train " + position(report, total_steps), 9}};
  if (total_steps > 0) parts.push_back({bar(report.step, total_steps, 12), 1});
  parts.push_back({concat("epoch ", report.epoch), 3});
  if (std::string text = losses(report); !text.empty()) {
    // Two forms of the same figure: the short one stands in when the long one has to go.
    parts.push_back({std::move(text), 5});
    parts.push_back({concat("loss ", fixed(report.loss, 3)), 7});
  }
  if (!std::isnan(report.learning_rate)) parts.push_back({concat("lr ", scientific(report.learning_rate)), 2});
  if (report.tokens_per_second > 0) parts.push_back({concat(short_count(report.tokens_per_second), " tok/s"), 4});
  if (eta_seconds >= 0) parts.push_back({concat("ETA ", whole_duration(eta_seconds)), 6});
  if (!phase.empty()) parts.push_back({concat("[", phase, "]"), 8});

  for (int limit = 0;; ++limit) {
    const bool long_losses = limit < 5;
    std::vector<std::string> shown;
    for (const Part& part : parts) {
      if (part.importance > limit && !(part.importance == 7 && long_losses)) shown.push_back(part.text);
    }
    std::string line = join(shown, "  ");
    if (columns_of(line) <= columns || limit == 8) return line;
  }
}

void StepClock::add(double seconds) {
  ++count_;
  if (count_ <= 2) {
    mean_ = seconds;  // the second step replaces the first
    return;
  }
  const auto window = static_cast<double>(std::min(count_ - 1, kMemory));
  mean_ += (seconds - mean_) / window;
}

double StepClock::mean() const {
  return mean_;
}

ProgressMode progress_mode(const std::string& name) {
  if (name == "auto") return ProgressMode::kAuto;
  if (name == "bar") return ProgressMode::kBar;
  if (name == "lines") return ProgressMode::kLines;
  TGV2_CHECK(name == "off");
  return ProgressMode::kOff;
}

Progress::Progress(ProgressOptions options) : options_(std::move(options)) {
  const bool wants_bar = options_.mode == ProgressMode::kAuto || options_.mode == ProgressMode::kBar;
  bar_ = wants_bar && console_is_terminal();
  const bool own_clock = !options_.clock;
  if (own_clock) options_.clock = steady_seconds;
  last_ = {options_.first_step, 0, NAN, NAN, NAN, NAN, NAN, 0};
  step_began_ = printed_at_ = options_.clock();
  if (own_clock && options_.mode != ProgressMode::kOff) thread_ = std::thread([this] { watch(); });
}

Progress::~Progress() {
  {
    std::lock_guard<std::mutex> guard(mutex_);
    end_ = true;
  }
  ended_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (bar_) set_status_line("");
}

void Progress::step_done(std::int64_t step, std::int64_t epoch) {
  std::lock_guard<std::mutex> guard(mutex_);
  const double now = options_.clock();
  steps_.add(std::max(0.0, now - step_began_ - away_));
  step_began_ = now;
  away_ = 0;
  last_.step = step;
  last_.epoch = epoch;
  if (bar_ && now - drawn_at_ >= kRedrawSeconds) redraw_locked(now);
}

void Progress::report(const StepReport& figures) {
  std::lock_guard<std::mutex> guard(mutex_);
  last_ = figures;
  if (options_.mode == ProgressMode::kOff) return;
  const double now = options_.clock();
  const std::string line = format_line(last_, options_.total_steps, steps_.mean(), eta_locked());
  printed_at_ = now;
  if (bar_) {
    log_debug("train", line);  // kept in log.txt; on the terminal the live line says it
    redraw_locked(now);
  } else {
    log_info("train", line);
  }
}

Progress::Phase::Phase(Progress& progress, std::string name) : progress_(progress), name_(std::move(name)) {
  std::lock_guard<std::mutex> guard(progress_.mutex_);
  outer_ = std::exchange(progress_.phase_, name_);
  outer_since_ = std::exchange(progress_.phase_since_, progress_.options_.clock());
  ++progress_.phase_depth_;
  if (progress_.bar_) progress_.redraw_locked(progress_.phase_since_);
}

Progress::Phase::~Phase() {
  std::lock_guard<std::mutex> guard(progress_.mutex_);
  const double now = progress_.options_.clock();
  // Only the outermost phase counts: the inner ones passed within it.
  if (--progress_.phase_depth_ == 0) progress_.away_ += now - progress_.phase_since_;
  progress_.phase_ = outer_;
  progress_.phase_since_ = outer_since_;
  if (progress_.bar_) progress_.redraw_locked(now);
}

void Progress::Phase::advance(std::int64_t done, std::int64_t total) {
  std::lock_guard<std::mutex> guard(progress_.mutex_);
  progress_.phase_ = concat(name_, " ", done, "/", total);
  const double now = progress_.options_.clock();
  if (progress_.bar_ && now - progress_.drawn_at_ >= kRedrawSeconds) progress_.redraw_locked(now);
}

double Progress::eta_seconds() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return eta_locked();
}

double Progress::step_seconds() const {
  std::lock_guard<std::mutex> guard(mutex_);
  return steps_.mean();
}

double Progress::eta_locked() const {
  if (options_.total_steps <= 0 || steps_.mean() < 0) return -1;
  const std::int64_t left = options_.total_steps - last_.step;
  return left <= 0 ? 0 : static_cast<double>(left) * steps_.mean();
}

std::string Progress::status() const {
  std::lock_guard<std::mutex> guard(mutex_);
  std::string line = format_line(last_, options_.total_steps, steps_.mean(), eta_locked());
  if (!phase_.empty()) line += concat("  [", phase_text_locked(options_.clock()), "]");
  return line;
}

std::string Progress::phase_text_locked(double now) const {
  const double seconds = now - phase_since_;
  return seconds < 1 ? phase_ : concat(phase_, " ", whole_duration(seconds));
}

void Progress::redraw_locked(double now) {
  drawn_at_ = now;
  const std::string phase = phase_.empty() ? "" : phase_text_locked(now);
  set_status_line(format_bar(last_, options_.total_steps, eta_locked(), phase, terminal_columns()));
}

void Progress::tick() {
  std::lock_guard<std::mutex> guard(mutex_);
  if (options_.mode == ProgressMode::kOff) return;
  const double now = options_.clock();
  if (bar_) return redraw_locked(now);
  if (options_.heartbeat_seconds <= 0 || now - printed_at_ < options_.heartbeat_seconds) return;
  printed_at_ = now;
  const std::string doing =
      phase_.empty() ? concat(whole_duration(now - step_began_), " in this step") : phase_text_locked(now);
  log_info("train", "still at work after step ", human_count(static_cast<std::uint64_t>(last_.step)), ": ", doing);
}

void Progress::watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ended_.wait_for(lock, std::chrono::milliseconds(500), [this] { return end_; })) {
    lock.unlock();
    tick();
    lock.lock();
  }
}

}  // namespace train_gpt_v2
