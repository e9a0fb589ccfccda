#pragma once
// The class behind run_training(): session.cc builds and runs, session_resume.cc finds what to continue and where,
// session_banner.cc tells what is going to happen.

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "train_gpt_v2/train/adaptation.h"
#include "train_gpt_v2/train/batch_fit.h"
#include "train_gpt_v2/train/gradient_sync.h"
#include "train_gpt_v2/train/optimizer_shards.h"
#include "train_gpt_v2/train/ranks.h"
#include "train_gpt_v2/train/session.h"
#include "train_gpt_v2/train/trainer.h"

namespace train_gpt_v2 {

// Everything a run is made of, in order of construction; later members use earlier ones.
class Session {
 public:
  Session(const SessionRequest& request, Options options, Ranks& ranks)
      : request_(request), options_(std::move(options)), directory_(request.run_directory), ranks_(ranks) {}

  ExitStatus run();

 private:
  // Where a continued run goes on in the data; `note` says what became of the checkpoint's place.
  struct Position {
    BatchCursor cursor;
    PlanStart start;
    std::string note;
  };

  bool prepare();
  ExitStatus train();
  void begin_stage(std::string_view name) const;
  bool choose_batch_size();
  bool stopped_alone() const;
  BatchFit measure_batch_size(std::int64_t effective);
  void find_checkpoint();
  FoundCheckpoint named_checkpoint();
  void open_data();
  void plan_epoch();
  std::int64_t goal_after(const PlanStart& start) const;
  void set_goal(const PlanStart& start);
  std::int64_t last_step() const { return goal_step_ < INT64_MAX ? goal_step_ : facts_.total_steps; }
  void build_model();
  void load_base_weights();
  void build_training();
  void check_resume();
  void check_new_rows() const;
  void check_ranks();
  void make_sync();
  Position find_position() const;
  PlanStart start_at(std::int64_t step, const BatchCursor& cursor) const;
  BatchCursor mended(const BatchCursor& cursor) const;
  void restore();
  void leave_what_was() const;
  std::unique_ptr<BatchSequence> make_sequence();
  std::unique_ptr<TrainingSampler> make_sampler();
  CheckpointParts parts();
  PreflightResult preflight();
  bool already_done();
  void banner();
  std::string estimated_time(const BatchPlan& plan, const PlanStatistics& statistics);
  void look_at_data() const;

  const SessionRequest& request_;
  Options options_;
  std::string directory_;
  Ranks& ranks_;
  std::optional<FoundCheckpoint> checkpoint_;
  CheckpointKind kind_ = CheckpointKind::kWeights;
  bool goes_back_ = false;  // --resume FILE where this run had not come from there: what is later steps aside

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Dataset> train_, validation_;
  std::unique_ptr<Sampler> sampler_;
  std::optional<OrderFile> order_;
  std::int64_t batches_per_epoch_ = 0, goal_step_ = INT64_MAX;
  RunFacts facts_;
  at::ScalarType compute_ = at::kFloat;

  std::unique_ptr<UnifiedVoice> model_;
  bool rows_were_made_ = false;  // the start weights know fewer tokens than the tokenizer
  std::unique_ptr<Adaptation> adaptation_;
  ParameterSet parameters_;
  std::unique_ptr<OptimizerShards> shards_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<Ema> ema_;
  std::uint64_t ema_device_bytes_ = 0;  // measured
  std::unique_ptr<GradScaler> scaler_;
  std::unique_ptr<Monitors> monitors_;
  std::unique_ptr<StabilityGuard> guard_;
  std::unique_ptr<LearningRateSchedule> schedule_;
  std::unique_ptr<Engine> engine_;
  std::string engine_reason_;
  std::unique_ptr<GradientSync> sync_;
  std::unique_ptr<TrainingSampler> training_sampler_;
  bool has_conditioners_ = true;  // false: the start weights came without them
  ResumeDecision decision_;
  Position position_;
  TrainState state_;
};

}  // namespace train_gpt_v2
