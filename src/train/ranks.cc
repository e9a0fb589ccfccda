#include "train_gpt_v2/train/ranks.h"

#include <c10/util/Logging.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#ifdef TGV2_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace train_gpt_v2 {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto kMeetTimeout = 5min;  // ranks of a job start minutes apart at worst
constexpr auto kWorkTimeout = 24h;   // lost ranks are found by the watch, not by a time limit on the work
constexpr auto kWatchInterval = 250ms;
constexpr auto kSilence = 30s;   // a rank without a heartbeat for so long is lost
constexpr auto kLastWords = 3s;  // how long a dying store stays up, and how long a broken sum waits for a reason
const char* const kFailureKey = "failure";

std::string beat_key(int rank) {
  return concat("beat/", rank);
}

std::string written(const Error& error) {
  const nlohmann::json all = {error.code(), error.message(), error.place(), error.details(), error.hint()};
  return all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);  // file names may be no UTF-8
}

Error read_error(const std::string& text, std::size_t rank) {
  const nlohmann::json all = nlohmann::json::parse(text);
  Error error = Error(all[0].get<std::string>(), all[1].get<std::string>()).at(all[2].get<std::string>());
  for (const auto& line : all[3]) static_cast<void>(std::move(error).detail(line.get<std::string>()));
  return std::move(error).detail(concat("on rank ", rank)).fix(all[4].get<std::string>());
}

[[noreturn]] void end_process(const std::string& report, ExitStatus status) {
  set_status_line("");
  log_raw(report);
  std::_Exit(static_cast<int>(status));  // the main thread may sit in a sum that never ends
}

class PendingWork final : public PendingSum {
 public:
  PendingWork(c10::intrusive_ptr<c10d::Work> work, std::vector<torch::Tensor> tensors,
              std::function<void(c10d::Work&)> await)
      : work_(std::move(work)), tensors_(std::move(tensors)), await_(std::move(await)) {}
  void wait() override { await_(*work_); }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::vector<torch::Tensor> tensors_;  // alive until the work is done
  std::function<void(c10d::Work&)> await_;
};

class NothingPending final : public PendingSum {
 public:
  void wait() override {}
};

}  // namespace

struct Ranks::Connection {
  ~Connection() { stop_watch(); }

  RankEnvironment environment;
  c10::intrusive_ptr<c10d::Store> store;  // for the groups
  c10::intrusive_ptr<c10d::Store> words;  // failures and heartbeats; a connection of its own, used by one thread
  c10::intrusive_ptr<c10d::Backend> host, device;

  std::mutex mutex;
  std::condition_variable wake;
  bool leaving = false;
  bool failed = false;  // this rank has reported its own failure
  std::thread watch;

  c10::intrusive_ptr<c10d::Store> connect(bool server) const {
    c10d::TCPStoreOptions options;
    options.port = environment.port;
    options.isServer = server;
    options.waitWorkers = false;
    options.timeout = std::chrono::duration_cast<std::chrono::milliseconds>(kMeetTimeout);
    return c10::make_intrusive<c10d::PrefixStore>(concat("train_gpt_v2/", environment.attempt),
                                                  c10::make_intrusive<c10d::TCPStore>(environment.address, options));
  }

  // c10d throws what the transport throws; the reason may be another rank's failure, which the watch then finds.
  template <typename Work>
  void guarded(Work&& work) {
    try {
      work();
    } catch (const std::exception& problem) {
      std::this_thread::sleep_for(kLastWords);
      throw Error("NET002", "contact with the other ranks is lost")
          .at(concat("rank ", environment.rank))
          .detail(first_line(problem.what()))
          .fix(
              "the log of the other ranks says why; start all of them again, the run continues from its newest "
              "checkpoint");
    }
  }

  static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

  // The store ends with this process, and the others read their reasons there.
  bool holds_store() const { return environment.rank == 0 && !environment.agent_store; }

  // --- the watch ---

  void start_watch() {
    watch = std::thread([this] { watch_others(); });
  }

  void stop_watch() {
    {
      const std::lock_guard lock(mutex);
      leaving = true;
    }
    wake.notify_all();
    if (watch.joinable()) watch.join();
  }

  void watch_others() {
    std::vector<std::int64_t> beats(static_cast<std::size_t>(environment.size), -1);
    std::vector<Clock::time_point> heard(beats.size(), Clock::now());
    while (true) {
      {
        std::unique_lock lock(mutex);
        if (wake.wait_for(lock, kWatchInterval, [this] { return leaving; })) return;
      }
      try {
        words->add(beat_key(environment.rank), 1);
        if (words->check({kFailureKey})) end_with(words->get(kFailureKey));
        for (int other = 0; other < environment.size; ++other) {
          const auto i = static_cast<std::size_t>(other);
          const std::int64_t beat = words->add(beat_key(other), 0);
          if (beat != beats[i]) {
            beats[i] = beat;
            heard[i] = Clock::now();
          } else if (Clock::now() - heard[i] > kSilence) {
            end_lost(concat("rank ", other, " has fallen silent"));
          }
        }
      } catch (const std::exception&) {
        end_lost("the store of rank 0 cannot be reached any more");
      }
    }
  }

  // Ends this process for another rank's failure: "<status>\n<rank>\n<report>".
  void end_with(const std::vector<std::uint8_t>& bytes) {
    {
      const std::lock_guard lock(mutex);
      if (leaving || failed) return;
    }
    const std::string text(bytes.begin(), bytes.end());
    const std::size_t first = text.find('\n'), second = text.find('\n', first + 1);
    const std::string rank = text.substr(first + 1, second - first - 1);
    if (holds_store()) std::this_thread::sleep_for(kLastWords);
    end_process(concat("rank ", environment.rank, " stops because rank ", rank, " failed:\n", text.substr(second + 1)),
                static_cast<ExitStatus>(std::atoi(text.c_str())));
  }

  void end_lost(const std::string& what) {
    {
      const std::lock_guard lock(mutex);
      if (leaving || failed) return;
    }
    const Error error = Error("NET002", "contact with the other ranks is lost")
                            .at(concat("rank ", environment.rank))
                            .detail(what)
                            .fix("start all ranks again; the run continues from its newest checkpoint");
    end_process(error.report(), error.status());
  }
};

Ranks::Ranks() = default;

Ranks::Ranks(const RankEnvironment& environment, const std::string& backend, at::Device device)
    : environment_(environment) {
  if (single()) return;
  backend_ = backend == "auto" ? (device.is_cuda() ? "nccl" : "gloo") : backend;
  ::setenv("TORCH_CPP_LOG_LEVEL", "ERROR", /*overwrite=*/0);  // c10d prints a stack trace for every peer that left
  c10::initLogging();
  connection_ = std::make_unique<Connection>();
  Connection& c = *connection_;
  c.environment = environment;
  try {
    c.store = c.connect(c.holds_store());
    c.words = c.connect(false);
    const auto timeout = std::chrono::duration_cast<std::chrono::milliseconds>(kWorkTimeout);
    const auto gloo = c10d::ProcessGroupGloo::Options::create(timeout);
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
    gloo->devices.push_back(interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                            : environment.local_size == environment.size
                                ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                                : c10d::ProcessGroupGloo::createDefaultDevice());
    c.host = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("host", c.store),
                                                         rank(), size(), gloo);
    if (backend_ == "nccl") {
#ifdef TGV2_NCCL
      const auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = timeout;
      c.device = c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>("device", c.store),
                                                             rank(), size(), options);
#else
      throw Error("NET001", "this build has no NCCL")
          .fix("set distributed.backend to \"gloo\", or build with the GPU set");
#endif
    } else {
      // Not the host's group: sums of gradients are under way while numbers are agreed on, and a group takes all its
      // work in one order.
      c.device = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("device", c.store),
                                                             rank(), size(), gloo);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& problem) {
    throw Error("NET001", "the ranks of this run do not meet")
        .at(concat("rank ", rank(), " of ", size(), ", store at ", environment.address, ":", environment.port))
        .detail(Connection::first_line(problem.what()))
        .fix("start all ranks; rank 0 must be reachable at MASTER_ADDR:MASTER_PORT, and the port must be free");
  }
  c.start_watch();
  c.guarded([&] { c.host->barrier()->wait(); });  // nobody starts, and fails, while others are still connecting
}

Ranks::~Ranks() {
  if (!connection_) return;
  connection_->stop_watch();
  if (connection_->failed && connection_->holds_store()) std::this_thread::sleep_for(kLastWords);
}

std::string Ranks::describe() const {
  return concat("rank ", rank(), " of ", size(), ", ", backend_);
}

void Ranks::sum(std::vector<double>& values) {
  if (single()) return;
  std::vector<torch::Tensor> tensors{
      torch::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, torch::kFloat64)};
  connection_->guarded([&] { connection_->host->allreduce(tensors)->wait(); });
}

std::unique_ptr<PendingSum> Ranks::start_sum(std::vector<torch::Tensor> tensors) {
  if (single() || tensors.empty()) return std::make_unique<NothingPending>();
  c10::intrusive_ptr<c10d::Work> work;
  connection_->guarded([&] { work = connection_->device->allreduce_coalesced(tensors); });
  return std::make_unique<PendingWork>(work, std::move(tensors),
                                       [this](c10d::Work& one) { connection_->guarded([&] { one.wait(); }); });
}

void Ranks::broadcast(torch::Tensor tensor, int root) {
  if (single()) return;
  std::vector<torch::Tensor> tensors{std::move(tensor)};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  const auto& group = tensors[0].is_cpu() ? connection_->host : connection_->device;
  connection_->guarded([&] { group->broadcast(tensors, options)->wait(); });
}

std::string Ranks::from_first(const std::string& text) {
  return gather(first() ? text : std::string())[0];
}

bool Ranks::from_first(bool value) {
  std::vector<double> said{first() && value ? 1.0 : 0.0};
  sum(said);
  return said[0] > 0;
}

std::vector<std::string> Ranks::gather(const std::string& text) {
  if (single()) return {text};
  const auto count = static_cast<std::size_t>(size());
  std::vector<double> lengths(count, 0);
  lengths[static_cast<std::size_t>(rank())] = static_cast<double>(text.size());
  sum(lengths);
  const auto longest = static_cast<std::int64_t>(*std::max_element(lengths.begin(), lengths.end()));
  if (longest == 0) return std::vector<std::string>(count);
  // One row per rank, zero but for the own one: their sum is everybody's text.
  torch::Tensor rows = torch::zeros({size(), longest}, torch::kUInt8);
  std::copy(text.begin(), text.end(), rows.mutable_data_ptr<std::uint8_t>() + rank() * longest);
  std::vector<torch::Tensor> tensors{rows};
  connection_->guarded([&] { connection_->host->allreduce(tensors)->wait(); });
  std::vector<std::string> result;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* row = rows.const_data_ptr<std::uint8_t>() + static_cast<std::int64_t>(i) * longest;
    result.emplace_back(row, row + static_cast<std::int64_t>(lengths[i]));
  }
  return result;
}

void Ranks::check_equal(const std::string& what, const std::string& text) {
  const std::vector<std::string> all = gather(text);
  for (std::size_t i = 1; i < all.size(); ++i) {
    if (all[i] == all[0]) continue;
    throw Error("NET003", concat("the ranks disagree about ", what))
        .detail(concat("rank 0: ", all[0]))
        .detail(concat("rank ", i, ": ", all[i]))
        .fix("start every rank with the same program, configuration and files");
  }
}

void Ranks::agree(const std::optional<Error>& failure) {
  if (single()) {
    if (failure) throw *failure;
    return;
  }
  const std::vector<std::string> all = gather(failure ? written(*failure) : "");
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i].empty()) throw SharedError(read_error(all[i], i));
  }
}

void Ranks::report_failure(const Error& error) {
  if (single()) return;
  {
    const std::lock_guard lock(connection_->mutex);
    connection_->failed = true;
  }
  const std::string text = concat(static_cast<int>(error.status()), "\n", rank(), "\n", error.report());
  try {
    // The first failure is the cause; those it brings about come too late to be told.
    connection_->store->compareSet(kFailureKey, {}, std::vector<std::uint8_t>(text.begin(), text.end()));
  } catch (const std::exception&) {
    // The store is gone: the others learn of it by themselves.
  }
}

void Ranks::leave() {
  if (single()) return;
  std::vector<double> nothing{0};
  sum(nothing);  // everybody has arrived; from here on nobody is missed
  connection_->stop_watch();
  connection_->guarded([&] { connection_->host->barrier()->wait(); });
}

}  // namespace train_gpt_v2
