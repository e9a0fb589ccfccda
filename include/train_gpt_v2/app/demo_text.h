#pragma once
// Amharic text for the demo corpus, read from what Debian's packages installed; nothing of it is stored here.
//
// Phrases come from the messages of libreoffice-l10n-am (GNU .mo files, MPL-2.0), words from aspell-am (public domain,
// through `aspell dump`). It is user-interface language: good to see a model learn, no basis for a real tokenizer.
// Errors: DEM001 with the apt line when a package is missing, DEM002 when a file is damaged.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

struct AmharicText {
  std::vector<std::string> phrases;  // 1..12 words of Ethiopic letters, sorted, unique
  std::vector<std::string> words;    // sorted, unique
};

// `message_folder`: where the .mo files lie; the default is Debian's.
AmharicText read_amharic_text(
    const std::string& message_folder = "/usr/lib/libreoffice/program/resource/am/LC_MESSAGES");

// The translations in a GNU .mo file, plural forms one by one. `name` is for messages.
std::vector<std::string> parse_message_catalogue(std::string_view content, std::string_view name);

// The phrases within one user-interface message: accelerators and markup removed, split at punctuation, prefixes that
// translators set apart ("የ ቁጥር") joined again, anything with other letters or digits left out.
std::vector<std::string> phrases_of_message(std::string_view message);

// `count` different sentences of 2..7 words that end with the Ethiopic full stop, made of whole phrases and now and
// then a dictionary word. A longer list begins with the shorter one.
std::vector<std::string> make_sentences(const AmharicText& text, std::size_t count, std::uint64_t seed);

}  // namespace train_gpt_v2
