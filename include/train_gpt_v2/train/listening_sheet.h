#pragma once
// The plan's listening protocol as a file: samples/step_N/notes.json, one entry per sample with four judgements.
// Training writes it empty, a person fills it in, `report` shows it.
//
//   {"step": 5000, "samples": [{"id": "a__b", "text": "ሰላም", "category": "common phrase",
//     "pronunciation": null, "prosody": null, "speaker": null, "emotion": null, "comment": ""}]}
//
// A judgement is a number (1 bad to 5 good), a word, true or false; null means: not listened to yet. Reading takes what
// people and scripts may have made of the file: unknown fields are ignored, texts are cut. Pure functions.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

// The four things to listen for; the order of the sheet's columns.
struct ListeningCriterion {
  std::string_view field;
  std::string_view question;
};
inline constexpr ListeningCriterion kListeningCriteria[] = {
    {"pronunciation", "Are the fidels pronounced correctly?"},
    {"prosody", "Do prosody and rhythm flow naturally?"},
    {"speaker", "Is it the speaker of the prompt?"},
    {"emotion", "Is the emotion of the prompt there?"},
};

struct ListeningNote {
  std::string id, text, category, comment;
  std::string judgements[4];  // as in kListeningCriteria; "" = not listened to yet
};

// The sheet to fill in.
std::string empty_listening_sheet(std::int64_t step, const std::vector<ListeningNote>& samples);

// At most 1,000 entries. Throws Error DAT090 with the reason when it is no such file.
std::vector<ListeningNote> parse_listening_sheet(std::string_view json);

}  // namespace train_gpt_v2
