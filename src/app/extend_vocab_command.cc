#include "train_gpt_v2/app/extend_vocab_command.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

double share(std::uint64_t part, std::uint64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

std::string as_json(const ExtensionRequest& request, const ExtensionReport& report) {
  const nlohmann::ordered_json json{
      {"base", request.base},
      {"output", request.output},
      {"pieces", request.size},
      {"base_pieces", report.base_pieces},
      {"new_characters", report.characters},
      {"new_merges", report.merges},
      {"ethiopic_characters_covered", report.ethiopic},
      {"unexpected_characters", report.unexpected},
      {"corpus", {{"lines", report.lines}, {"words", report.words}, {"different_words", report.distinct_words}}},
      {"before", {{"tokens", report.tokens_before}, {"unk_share", share(report.unknown_before, report.tokens_before)}}},
      {"after", {{"tokens", report.tokens_after}, {"unk_share", 0.0}}},
      {"base_segmentations_compared", report.segmentations_compared}};
  return dump_json(json, 1) + "\n";
}

std::string as_text(const ExtensionRequest& request, const ExtensionReport& report) {
  const auto number = [](auto n) { return human_count(static_cast<std::uint64_t>(n)); };
  std::string text =
      table({{"extend-vocab", ""},
             {"pieces", number(request.size)},
             {"  of the base, same ids", number(report.base_pieces)},
             {"  new characters", number(report.characters)},
             {"  new merges", number(report.merges)},
             {"words of the texts", number(report.words)},
             {"  unknown pieces before", fixed(100 * share(report.unknown_before, report.tokens_before), 2) + " %"},
             {"  unknown pieces now", "0 %"},
             {"  pieces per word now", fixed(share(report.tokens_after, report.words), 2)},
             {"Ethiopic characters covered", number(report.ethiopic)},
             {"base texts split as before", number(report.segmentations_compared)}});
  return text + concat("written: ", request.output, "\nnext: \"number_text_tokens\": ", request.size,
                       ", data.tokenizer this file, data.base_tokenizer ", request.base, "\n");
}

}  // namespace

void run_extend_vocab(const ExtensionRequest& request, bool json, std::ostream& out) {
  if (absolute_path(request.base) == absolute_path(request.output)) {
    throw Error("TOK011", "--output names the base model itself").where(request.output).fix("choose another file");
  }
  const ExtensionReport report = extend_vocabulary(request);
  if (!report.unexpected.empty()) {
    const std::size_t shown = std::min<std::size_t>(report.unexpected.size(), 20);
    log_warning("tokenizer", report.unexpected.size(),
                " characters are in the vocabulary only because the texts hold them: ",
                join({report.unexpected.begin(), report.unexpected.begin() + static_cast<std::ptrdiff_t>(shown)}, " "),
                shown < report.unexpected.size() ? " ..." : "", "; clean the texts if they do not belong there");
  }
  out << (json ? as_json(request, report) : as_text(request, report));
}

}  // namespace train_gpt_v2
