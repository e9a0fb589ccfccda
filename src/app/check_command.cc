#include "train_gpt_v2/app/check_command.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/doctor.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/session.h"

namespace train_gpt_v2 {
namespace {

using OrderedJson = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct Stage {
  std::string name;
  Severity severity = Severity::kInfo;
  double seconds = 0;
  std::vector<std::string> notes;  // what was found, one line each
  std::optional<Error> error;

  std::string result() const {
    return severity == Severity::kError ? "error" : severity == Severity::kWarning ? "warning" : "ok";
  }
};

class Check {
 public:
  explicit Check(const CheckRequest& request) : request_(request) {}

  ExitStatus run(std::ostream& out) {
    if (read_config()) {
      const bool tokenizer = check_tokenizer();
      const bool data = check_data();
      if (!request_.data_only) check_run(tokenizer && data);
    }
    if (stop_requested() != ExitStatus::kOk) return stop_requested();
    out << (request_.json ? dump_json(json(), 2) + "\n" : text());
    return status_;
  }

 private:
  // Runs `work` as a stage; true when it threw no Error.
  template <class Work>
  bool stage(const std::string& name, const Work& work) {
    stages_.push_back({name, Severity::kInfo, 0, {}, std::nullopt});
    const auto begin = Clock::now();
    bool whole = true;
    try {
      work(stages_.back());
    } catch (const Error& failure) {
      fail(failure);
      whole = false;
    }
    stages_.back().seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return whole;
  }

  void fail(const Error& failure) {
    stages_.back().severity = Severity::kError;
    stages_.back().error = failure;
    if (status_ == ExitStatus::kOk) status_ = failure.status();
  }

  bool read_config() {
    return stage("configuration", [&](Stage& at) {
      config_ = load_config(request_.config, request_.sets);
      at.notes = config_.warnings;
      if (!at.notes.empty()) at.severity = Severity::kWarning;
      device_ = choose_device(request_.device);
      configure_compute(config_.options.train, device_);
      directory_ = absolute_path(request_.output_dir.empty() ? "runs/" + config_.name : request_.output_dir);
    });
  }

  bool check_tokenizer() {
    return stage("tokenizer", [&](Stage& at) {
      const DataOptions& data = config_.options.data;
      if (data.tokenizer.empty()) {
        at.notes.push_back("none: every record must name its text ids");
        return;
      }
      tokenizer_ = std::make_shared<const Tokenizer>(data.tokenizer);
      check_vocabulary(*tokenizer_, config_.options.model);
      if (!data.base_tokenizer.empty()) check_extension(*tokenizer_, Tokenizer(data.base_tokenizer));
      at.notes.push_back(concat(tokenizer_->size(), " pieces"));
    });
  }

  // Without a tokenizer that fits, lengths and ids of the records are still looked at.
  std::shared_ptr<const Tokenizer> usable_tokenizer() const {
    return tokenizer_ && tokenizer_->size() == config_.options.model.number_text_tokens ? tokenizer_ : nullptr;
  }

  bool check_data() {
    DataOptions data = config_.options.data;
    DoctorOptions options;
    options.full = request_.full;
    const auto examine = [&](Stage& at) {
      if (data.train_manifests.empty()) {
        throw Error("CFG014", "data.train_manifests is empty: there is nothing to look at")
            .fix("name at least one pair manifest, e.g. \"train_manifests\": [\"train_pairs.jsonl::am\"]");
      }
      report_ = examine_data(data, config_.options.model, usable_tokenizer(), options);
      at.severity = report_->worst();
      at.notes.push_back(concat(human_count(report_->records), " records, the arrays of ",
                                human_count(report_->arrays_read), " pairs read",
                                request_.full ? "" : " (--full reads all)"));
    };
    const bool examined = stage("data", examine);
    if (examined && !request_.repair.empty()) {
      const bool repaired = stage("repair", [&](Stage& at) {
        RepairOptions how;
        how.folder = absolute_path(request_.repair);
        repair_ = repair_data(how, data, config_.options.model, usable_tokenizer());
        at.notes.push_back(concat(human_count(repair_->trimmed), " clips trimmed, ", human_count(repair_->left_out),
                                  " records left out (", path_join(how.folder, "left_out.jsonl"), ")"));
        data.train_manifests = repair_->train;
        data.val_manifests = repair_->validation;
      });
      if (repaired) stage("repaired data", examine);
    }
    if (status_ == ExitStatus::kOk && report_ && report_->worst() == Severity::kError) status_ = ExitStatus::kBadData;
    config_.options.data.train_manifests = data.train_manifests;
    config_.options.data.val_manifests = data.val_manifests;
    return examined;
  }

  // What training itself does up to its first step, then that step, saving and room: train/session.h.
  void check_run(bool possible) {
    if (!possible) {
      stages_.push_back(
          {"run", Severity::kWarning, 0, {"not looked at until the errors above are corrected"}, std::nullopt});
      return;
    }
    const bool bad_data = report_ && report_->worst() == Severity::kError;
    PreflightResult measured;
    SessionRequest session;
    session.options = config_.options;
    session.run_directory = directory_;
    if (bad_data) {  // reported above; the rest is looked at with what is usable, and no checkpoint is compared with it
      session.options.data.on_bad_sample = "skip";
      session.options.data.max_bad_fraction = 1;
      session.run_directory = path_join(directory_, "check");
    }
    session.device = device_;
    session.build = request_.build;
    session.preflight = &measured;
    auto began = Clock::now();
    bool open = false;
    const auto close = [&] {
      if (open) stages_.back().seconds = std::chrono::duration<double>(Clock::now() - began).count();
    };
    session.stage = [&](std::string_view name) {
      close();
      began = Clock::now();
      open = true;
      stages_.push_back({std::string(name), Severity::kInfo, 0, {}, std::nullopt});
    };
    try {
      run_training(session);
      close();
      measured_ = measured;
      note_measurements();
    } catch (const Error& failure) {
      close();
      fail(failure);
    }
  }

  void note_measurements() {
    const PreflightResult& m = *measured_;
    for (Stage& at : stages_) {
      if (at.name == "weights" && m.resumed_step > 0)
        at.notes.push_back(concat("continues from step ", m.resumed_step));
      if (at.name == "step") {
        at.notes.push_back(concat("longest batch ", m.longest_samples, " samples, ", m.longest.positions,
                                  " positions: ", human_bytes(m.longest.peak_memory),
                                  m.memory > 0 ? " of " + human_bytes(m.memory) : "", ", loss ",
                                  fixed(m.longest.loss, 3)));
        if (m.memory > 0 && static_cast<double>(m.longest.peak_memory) > 0.95 * static_cast<double>(m.memory)) {
          at.severity = Severity::kWarning;
          at.notes.push_back("hardly any memory is left: lower train.batch_size and raise train.grad_accumulation");
        }
        if (m.suggested_batch_size && *m.suggested_batch_size != m.longest_samples) note_batch_size(at.notes);
      }
      if (at.name == "save and load") {
        at.notes.push_back(concat("a checkpoint takes ", human_bytes(m.checkpoint_bytes), ", ",
                                  human_duration(m.save_seconds), " to write, ", human_duration(m.load_seconds),
                                  " to read"));
      }
      if (at.name == "disk") {
        at.notes.push_back(concat(human_bytes(m.free_bytes), " free, up to ", human_bytes(m.wanted_bytes), " wanted"));
        if (m.free_bytes < m.wanted_bytes) at.severity = Severity::kWarning;
      }
    }
  }

  void note_batch_size(std::vector<std::string>& notes) const {
    const PreflightResult& m = *measured_;
    notes.push_back(concat("up to ", *m.suggested_batch_size, " samples per micro-batch are expected to fit (",
                           m.half.samples, " took ", human_bytes(m.half.peak_bytes), ", ", m.longest_samples, " took ",
                           human_bytes(m.longest.peak_memory), "; a tenth stays free)"));
    if (*m.suggested_batch_size > m.longest_samples) {
      notes.push_back(
          "a larger effective batch wants optimizer.lr_scaling, and --allow-change batch in a run that has begun");
    }
  }

  std::string text() const {
    std::vector<std::vector<std::string>> rows{{"checked", "result", "time", "found"}};
    for (const Stage& at : stages_) {
      rows.push_back({at.name, at.result(), human_duration(at.seconds), at.notes.empty() ? "" : at.notes[0]});
      for (std::size_t i = 1; i < at.notes.size(); ++i) rows.push_back({"", "", "", at.notes[i]});
    }
    std::string text;
    if (report_) text += report_->text() + "\n";
    text += table(rows);
    for (const Stage& at : stages_) {
      if (at.error) text += "\n" + at.error->report();
    }
    if (repair_) {
      text += concat("\ntrain on the repaired manifests:\n  --set 'data.train_manifests=",
                     dump_json(OrderedJson(repair_->train)), "'\n");
      if (!repair_->validation.empty()) {
        text += concat("  --set 'data.val_manifests=", dump_json(OrderedJson(repair_->validation)), "'\n");
      }
    }
    if (measured_) {
      const PreflightResult& m = *measured_;
      text += concat("\nmemory ", human_bytes(m.longest.peak_memory), ", ", human_duration(m.step_seconds),
                     " per step, ", human_count(static_cast<std::uint64_t>(m.steps_left)), " steps: about ",
                     human_duration(m.total_seconds), " without validation\n");
    }
    return text + concat("\n", verdict(), "\n");
  }

  std::string verdict() const {
    std::uint64_t errors = 0, warnings = 0;
    for (const Stage& at : stages_) errors += at.error.has_value();
    for (const Stage& at : stages_) warnings += !at.error && at.name != "data" && at.severity == Severity::kWarning;
    for (const Finding& finding : report_ ? report_->findings : std::vector<Finding>{}) {
      errors += finding.severity == Severity::kError;
      warnings += finding.severity == Severity::kWarning;
    }
    if (errors > 0) return concat(errors, " errors, ", warnings, " warnings: correct the errors, then check again");
    const std::string go = concat("train_gpt_v2 train --config ", request_.config);
    return warnings > 0 ? concat("no errors, ", warnings, " warnings; train with: ", go)
                        : "all is well; train with: " + go;
  }

  OrderedJson json() const {
    OrderedJson document = {{"exit_status", static_cast<int>(status_)}, {"verdict", verdict()}};
    document["stages"] = OrderedJson::array();
    for (const Stage& at : stages_) {
      OrderedJson entry = {{"name", at.name}, {"result", at.result()}, {"seconds", at.seconds}, {"notes", at.notes}};
      if (at.error) {
        entry["error"] = {{"code", at.error->code()},
                          {"message", at.error->message()},
                          {"place", at.error->place()},
                          {"details", at.error->details()},
                          {"fix", at.error->hint()}};
      }
      document["stages"].push_back(std::move(entry));
    }
    if (report_) document["data"] = report_->json();
    if (repair_) {
      document["repair"] = {{"train_manifests", repair_->train},
                            {"val_manifests", repair_->validation},
                            {"trimmed", repair_->trimmed},
                            {"left_out", repair_->left_out}};
    }
    if (measured_) {
      const PreflightResult& m = *measured_;
      document["measured"] = {{"peak_memory_bytes", m.longest.peak_memory},
                              {"memory_bytes", m.memory},
                              {"longest_batch_positions", m.longest.positions},
                              {"loss", m.longest.loss},
                              {"step_seconds", m.step_seconds},
                              {"steps", m.steps_left},
                              {"total_seconds", m.total_seconds},
                              {"checkpoint_bytes", m.checkpoint_bytes},
                              {"save_seconds", m.save_seconds},
                              {"load_seconds", m.load_seconds},
                              {"free_bytes", m.free_bytes}};
      if (m.suggested_batch_size) document["measured"]["suggested_batch_size"] = *m.suggested_batch_size;
    }
    return document;
  }

  const CheckRequest& request_;
  LoadedConfig config_;
  at::Device device_ = at::kCPU;
  std::string directory_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::optional<DoctorReport> report_;
  std::optional<RepairReport> repair_;
  std::optional<PreflightResult> measured_;
  std::vector<Stage> stages_;
  ExitStatus status_ = ExitStatus::kOk;
};

}  // namespace

ExitStatus run_check(const CheckRequest& request, std::ostream& out) {
  return Check(request).run(out);
}

}  // namespace train_gpt_v2
