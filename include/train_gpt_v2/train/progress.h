#pragma once
// What a person sees while the program trains: on a terminal one live line, elsewhere one plain line per log interval,
// and in both a sign of life when nothing was printed for long (a slow step, a long save).
//
//   train 1,234/100,000 1.2% ━━━━╌╌╌╌ epoch 3  loss 3.412 (text 2.104, mel 3.739)  lr 2.0e-05  12.3k tok/s  ETA 2h03m
//
// Times are seconds. The estimate of the time left counts training steps alone: what passes inside a Phase (validation,
// save, sampling) and the first step of the process are no part of a step's time. Every function may be called from any
// thread; a thread of its own redraws the line twice a second and prints the heart-beat.

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace train_gpt_v2 {

// The figures of a log interval; a not-a-number is left out of the line.
struct StepReport {
  std::int64_t step = 0;
  std::int64_t epoch = 0;
  double loss = 0, text_loss = 0, mel_loss = 0;
  double learning_rate = 0;
  double grad_norm = 0;
  double tokens_per_second = 0;  // scored targets
};

// "12.3k", "1.20M", "987": three digits.
std::string short_count(double count);

// The part of a line that both forms share: "loss 3.412 (text 2.104, mel 3.739)  lr 2.0e-05  grad 0.81  12.3k tok/s".
std::string format_figures(const StepReport& report);

// A plain line for a log: step, share, epoch, figures, seconds per step, time left. total_steps 0 = unknown;
// step_seconds or eta_seconds < 0 = not known yet.
std::string format_line(const StepReport& report, std::int64_t total_steps, double step_seconds, double eta_seconds);

// The live line in at most `columns` columns: what matters least goes first (bar, learning rate, epoch, ...).
// `phase` ("saving 3s") stands at the end when not "".
std::string format_bar(const StepReport& report, std::int64_t total_steps, double eta_seconds, const std::string& phase,
                       std::size_t columns);

// Mean seconds per step over the last 500 steps or so, with the first step of a process left out (it includes
// allocations and kernel choice) as soon as there are others.
class StepClock {
 public:
  void add(double seconds);
  double mean() const;  // -1 before the first step

 private:
  std::int64_t count_ = 0;
  double mean_ = -1;
};

enum class ProgressMode { kAuto, kBar, kLines, kOff };
ProgressMode progress_mode(const std::string& name);  // the values of logging.progress; INT001 for others

struct ProgressOptions {
  ProgressMode mode = ProgressMode::kAuto;  // kAuto and kBar give lines where stderr is no terminal
  std::int64_t total_steps = 0;             // 0 = not known
  std::int64_t first_step = 0;              // steps done before this process
  double heartbeat_seconds = 60;
  // Seconds on a clock that never goes back; tests replace it, and then nothing is redrawn but by tick().
  std::function<double()> clock;
};

class Progress {
 public:
  explicit Progress(ProgressOptions options);
  ~Progress();  // removes the live line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // After every optimiser step; costs a clock reading and a lock.
  void step_done(std::int64_t step, std::int64_t epoch);
  // At every log interval: new figures; without a terminal it prints the line.
  void report(const StepReport& figures);

  // Something that is no training step, for the life of this object. One at a time; an inner one takes over the name.
  class Phase {
   public:
    Phase(Progress& progress, std::string name);
    ~Phase();
    Phase(const Phase&) = delete;
    Phase& operator=(const Phase&) = delete;
    void advance(std::int64_t done, std::int64_t total);  // "validating 12/40"

   private:
    Progress& progress_;
    std::string outer_;
    double outer_since_;
    std::string name_;
  };

  double eta_seconds() const;   // -1 when not known
  double step_seconds() const;  // -1 before the first step
  std::string status() const;   // the plain line as of now (SIGUSR2)
  void tick();                  // redraws or beats when it is time; called by the thread

 private:
  double eta_locked() const;
  std::string phase_text_locked(double now) const;
  void redraw_locked(double now);
  void watch();

  ProgressOptions options_;
  bool bar_ = false;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  StepReport last_;
  StepClock steps_;
  double step_began_;
  double away_ = 0;  // seconds inside phases since the last step ended
  double printed_at_;
  double drawn_at_ = -1;
  std::string phase_;
  double phase_since_ = 0;
  int phase_depth_ = 0;
  std::thread thread_;
};

}  // namespace train_gpt_v2
