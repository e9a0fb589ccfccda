#include "train_gpt_v2/app/sample_command.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "train_gpt_v2/app/vocoder.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/sampling.h"

namespace train_gpt_v2 {
namespace {

// A weight file may lack the conditioners where the configuration does without; cases with features need them.
void need_conditioners(const std::string& checkpoint) {
  const LoadedFile file = read_tensor_file(absolute_path(checkpoint), /*verify=*/false);
  bool found = false;
  for (const auto& [key, value] : weights_in(file.root, checkpoint).entries()) {
    found = found || (key.is_string() && key.as_string().find("emo_conditioning_encoder.") != std::string::npos);
  }
  if (!found) {
    throw Error("CKP005", "the cases have features, but this file holds no conditioning encoder")
        .where(checkpoint)
        .fix("use cases with condition_path and emo_vec_path, or a checkpoint with all tensors");
  }
}

std::string summary(const SamplingResult& result) {
  std::vector<std::vector<std::string>> rows{
      {"id", "length", "stop", "longest_repeat", "distinct_codes", "mean_logprob", "monotonicity", "coverage"}};
  for (const SampleRecord& record : result.records) {
    rows.push_back({record.id, concat(record.codes.size()), record.stopped ? "stop" : "limit",
                    concat(record.longest_repeat), concat(record.distinct_codes), fixed(record.mean_logprob, 4),
                    record.monotonicity ? fixed(*record.monotonicity, 3) : "-",
                    record.coverage ? fixed(*record.coverage, 3) : "-"});
  }
  return table(rows);
}

// The records without their codes, which are in the folder.
std::string summary_json(const SampleRequest& request, const std::string& weights, const SamplingResult& result) {
  nlohmann::ordered_json samples = nlohmann::ordered_json::array();
  for (const SampleRecord& record : result.records) {
    auto line = nlohmann::ordered_json::parse(record_json(record));
    line.erase("codes");
    samples.push_back(std::move(line));
  }
  const nlohmann::ordered_json json{{"checkpoint", request.model.checkpoint},
                                    {"weights", weights},
                                    {"folder", absolute_path(request.folder)},
                                    {"samples", samples}};
  return dump_json(json, 1) + "\n";
}

}  // namespace

DecodingOptions shipped_decoding() {
  DecodingOptions decoding;
  decoding.max_codes = kShippedMaxCodes;
  return decoding;
}

ExitStatus run_sample(const SampleRequest& request, std::ostream& out) {
  ModelSource source = load_model(request.model);
  const Options& options = source.options;
  configure_compute(options.train, request.model.device);
  std::shared_ptr<const Tokenizer> tokenizer;
  if (!options.data.tokenizer.empty()) {
    tokenizer = std::make_shared<const Tokenizer>(options.data.tokenizer);
    check_vocabulary(*tokenizer, options.model);
  }
  std::vector<SampleCase> cases =
      read_cases(request.cases, {options.model, tokenizer.get(), options.data.language, request.prompt});

  std::vector<std::string> manifests = request.manifests;
  if (manifests.empty()) manifests = options.data.val_manifests;
  if (manifests.empty()) manifests = options.data.train_manifests;
  std::unique_ptr<Dataset> pairs;
  bool features = false;
  for (SampleCase& one : cases) {
    features = features || !one.speaker_features_path.empty();
    if (one.prompt.empty()) continue;
    if (manifests.empty()) {
      throw Error("CFG021", "a case names a prompt, but there is no manifest to find it in")
          .where(request.cases)
          .at(one.id)
          .fix("give --manifest FILE");
    }
    if (!pairs) {
      pairs =
          std::make_unique<Dataset>(manifests, std::vector<ReplayOptions>{}, options.data, options.model, tokenizer);
      features = features || options.model.conditioning == "online";
    }
    one.pair = pairs->find(one.prompt);
    if (one.speaker.empty()) one.speaker = pairs->speakers()[pairs->info(*one.pair).speaker];
  }
  if (features) need_conditioners(request.model.checkpoint);

  SamplingSetup setup;
  setup.folder = absolute_path(request.folder);
  setup.decoding = request.decoding;
  setup.batch_size = request.batch_size;
  setup.vocoder = make_vocoder(request.vocoder_command, manifests);
  setup.stop = [] { return stop_requested() != ExitStatus::kOk; };
  log_info("sample", cases.size(), " cases, ", source.weights, " weights, to ", setup.folder);
  const SamplingResult result = write_samples(*source.model, cases, pairs.get(), setup);
  out << (request.json ? summary_json(request, source.weights, result) : summary(result));
  if (stop_requested() != ExitStatus::kOk) return stop_requested();
  if (!result.sound_errors.empty()) {
    log_warning("sample", result.sound_errors.size(), " of ", result.records.size(), " samples have no sound");
    throw result.sound_errors.front();
  }
  return ExitStatus::kOk;
}

}  // namespace train_gpt_v2
