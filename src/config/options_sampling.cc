// Rows of section sampling.

#include "option_builder.h"

namespace train_gpt_v2 {
namespace {

#define TGV2_DECODING(member, doc)                  \
  make_option(                                      \
      "sampling." #member, ResumeClass::kFree, doc, \
      [](auto& options) -> auto& { return options.sampling.decoding.member; })

OptionRows decoding_rows() {
  return {
      TGV2_DECODING(greedy, "draw nothing: the best code each time, or plain beam search with num_beams above 1"),
      TGV2_DECODING(num_beams, "beams of the search; 1 = none").range(1, 64),
      TGV2_DECODING(temperature, "divides the scores").above(0).at_most(100),
      TGV2_DECODING(top_k, "draw from the k best codes; 0 = off").range(0, 1'000'000).unit("codes"),
      TGV2_DECODING(top_p, "draw from the best codes that hold this probability; 1 = off").above(0).at_most(1),
      TGV2_DECODING(typical_p, "typical sampling with this mass; null = off").above(0).at_most(1),
      TGV2_DECODING(repetition_penalty, "divides the score of codes that occurred; 1 = off").above(0).at_most(1000),
      TGV2_DECODING(length_penalty, "exponent on the length of a beam").range(-100, 100),
      TGV2_DECODING(max_codes, "longest answer, the stop code included; null = 1500; never above max_mel_tokens - 1")
          .range(1, 1'000'000)
          .unit("codes"),
      TGV2_DECODING(mel_position, "positions of the codes: as in training, or shifted as the reference's inference")
          .choices({"training", "reference_inference"}),
      TGV2_DECODING(seed, "of the draws; training's random numbers are never touched").at_least(0),
  };
}

std::string command_problem(const std::string& command) {
  for (const char* name : {"{codes}", "{out}"}) {
    if (command.find(name) == std::string::npos) return std::string("does not hold ") + name;
  }
  return "";
}

}  // namespace

OptionRows sampling_rows() {
  OptionRows rows{
      TGV2_OPTION(sampling.interval, kFree, "decode samples every so many steps; 0 = off")
          .range(0, 1e9)
          .off_is(0)
          .unit("steps"),
      TGV2_OPTION(sampling.count, kFree, "so many validation pairs, the first ones, where no cases are named")
          .range(1, 1000)
          .unit("samples"),
      TGV2_OPTION(sampling.cases, kFree, "cases file as for `sample`; null = validation pairs").path().or_null(),
      TGV2_OPTION(sampling.baseline_step, kFree,
                  "the report shows this step's samples beside the others; sampled too, 0 = before the first step")
          .range(0, 1e9)
          .unit("steps"),
      TGV2_OPTION(sampling.vocoder_command, kFree,
                  "program that turns codes into sound, {codes} and {out} replaced by file names; null = none")
          .checked(command_problem)
          .or_null(),
  };
  for (OptionRow& row : decoding_rows()) rows.push_back(std::move(row));
  return rows;
}

}  // namespace train_gpt_v2
