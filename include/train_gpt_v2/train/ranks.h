#pragma once
// This process among the ranks of a data-parallel run: sums and agreements over all of them, and one end for all.
//
// Engine: PyTorch's c10d. Gloo carries what lives on the host (counts, decisions, gradients of CPU runs), NCCL what
// lives on a GPU. Every function that says "all" must be called by all ranks in the same order. Results are the same
// bits on every rank. With one rank everything returns at once and no connection exists.
//
// An error that one rank alone meets goes to all of them where they meet next (agree()), so that they can save before
// they end; nothing else needs that, because a thread of its own watches the others: a rank that reports a failure,
// dies or falls silent ends this process within seconds, with the failing rank's message and exit status. Errors:
// NET001 the ranks do not meet, NET002 contact is lost, NET003 they disagree. Threads: one caller.

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/train/rank_environment.h"

namespace train_gpt_v2 {

// A sum over the ranks under way.
class PendingSum {
 public:
  virtual ~PendingSum() = default;
  virtual void wait() = 0;  // on CUDA: orders the current stream behind it, without blocking the host
};

// A rank's error, thrown on all of them at the same place: they can still meet.
class SharedError : public Error {
 public:
  explicit SharedError(Error error) : Error(std::move(error)) {}
};

class Ranks {
 public:
  Ranks();  // one rank
  // Meets the others. `backend`: auto | nccl | gloo, for tensors of `device`; auto is NCCL on CUDA, else Gloo.
  Ranks(const RankEnvironment& environment, const std::string& backend, at::Device device);
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int rank() const { return environment_.rank; }
  int size() const { return environment_.size; }
  bool first() const { return environment_.rank == 0; }  // the rank that logs and writes
  bool single() const { return environment_.single(); }
  std::string describe() const;  // "rank 1 of 4, gloo"

  // All: host numbers summed in place; counts are exact up to 2^53.
  void sum(std::vector<double>& values);
  // All: tensors of the device, of one type, summed in place. Only their order among each other counts: calls of the
  // other kinds may come in between, at different places on different ranks.
  std::unique_ptr<PendingSum> start_sum(std::vector<torch::Tensor> tensors);
  // All: `tensor` of rank `root` into that of every rank.
  void broadcast(torch::Tensor tensor, int root = 0);

  // All: what rank 0 says.
  std::string from_first(const std::string& text);
  bool from_first(bool value);
  // All: everybody's text, by rank.
  std::vector<std::string> gather(const std::string& text);
  // All: throws NET003 on every rank where somebody's text differs from rank 0's. `what` names it in the message.
  void check_equal(const std::string& what, const std::string& text);

  // All: nothing where no rank has failed. Else throws a SharedError on every rank: the failure of the lowest that has
  // one, with its number. One rank's own failure is thrown as it is.
  void agree(const std::optional<Error>& failure);

  // Tells the other ranks that this one stops with an error; they end with its message and status.
  void report_failure(const Error& error);
  // All: the run is over; the watch ends, nobody counts as lost any more.
  void leave();

 private:
  struct Connection;
  RankEnvironment environment_;
  std::string backend_ = "none";
  std::unique_ptr<Connection> connection_;  // null with one rank
};

}  // namespace train_gpt_v2
