#include "train_gpt_v2/app/demo_text.h"

#include <algorithm>
#include <set>

#include "train_gpt_v2/app/demo_process.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxCatalogueBytes = 64u << 20;
constexpr std::size_t kMaxDictionaryBytes = 64u << 20;
constexpr std::size_t kMaxPhraseWords = 12;
constexpr std::uint64_t kOrderStream = 0x7E01, kSentenceStream = 0x7E02;

// Ethiopic syllables of the basic block, without its punctuation and digits (U+1361 and above).
bool is_fidel(char32_t c) {
  return c >= 0x1200 && c <= 0x135A;
}

// The next code point of text that valid_utf8 accepted.
char32_t next_code_point(std::string_view text, std::size_t& position) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(position);
  const std::size_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  char32_t value = length == 1 ? first : first & (0xFF >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) value = value << 6 | (byte(position + i) & 0x3F);
  position += length;
  return value;
}

std::size_t count_code_points(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words = split(text, ' ');
  std::erase(words, "");
  return words;
}

// ("የ", "ቁጥር") -> ("የቁጥር"): the four one-letter prepositions belong to the next word.
std::vector<std::string> join_prefixes(const std::vector<std::string>& words) {
  std::vector<std::string> joined;
  std::string prefix;
  for (const std::string& word : words) {
    if (word == "የ" || word == "በ" || word == "ለ" || word == "ከ") {
      prefix += word;
    } else {
      joined.push_back(prefix + word);
      prefix.clear();
    }
  }
  return joined;
}

// What a character of a message means for the phrase at hand.
enum class Role { kLetter, kSpace, kDrop, kBreak, kForeign };

Role role_of(char32_t c) {
  if (is_fidel(c)) return Role::kLetter;
  switch (c) {
    case ' ':
    case '\t':
    case 0xA0:
    case 0x1361:
    case '-':
    case 0x2013:
      return Role::kSpace;
    case '_':
    case '~':
    case 0xAD:
    case 0x200B:
      return Role::kDrop;  // accelerators, invisible marks
    case '\n':
    case '\r':
    case '.':
    case ',':
    case ':':
    case ';':
    case '?':
    case '!':
    case '(':
    case ')':
    case '[':
    case ']':
    case '"':
    case '\'':
    case '/':
    case 0x2014:
    case 0x2018:
    case 0x2019:
    case 0x201C:
    case 0x201D:
    case 0x2026:
    case 0xAB:
    case 0xBB:
      return Role::kBreak;
    default:
      return c >= 0x1362 && c <= 0x1368 ? Role::kBreak : Role::kForeign;
  }
}

std::uint32_t read_word(std::string_view content, std::size_t offset, bool big_endian, std::string_view name) {
  if (offset + 4 > content.size()) throw Error("DEM002", "a message catalogue is cut short").where(name);
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    const auto byte = static_cast<unsigned char>(content[offset + (big_endian ? i : 3 - i)]);
    value = value << 8 | byte;
  }
  return value;
}

std::vector<std::string> dictionary_words() {
  const std::string dump = run_program({"aspell", "--lang=am", "--encoding=utf-8", "dump", "master"}, "",
                                       kMaxDictionaryBytes, "aspell aspell-am");
  std::set<std::string> words;
  for (const std::string& line : split(dump, '\n')) {
    const std::vector<std::string> phrases = phrases_of_message(line);
    if (phrases.size() == 1 && phrases[0].find(' ') == std::string::npos) words.insert(phrases[0]);
  }
  if (words.size() < 1000) {
    throw Error("DEM001", concat("aspell knows only ", words.size(), " Amharic words"))
        .fix("as root: apt-get install -y aspell aspell-am");
  }
  return {words.begin(), words.end()};
}

}  // namespace

std::vector<std::string> parse_message_catalogue(std::string_view content, std::string_view name) {
  // Layout: magic, revision, number of strings, offset of the originals' table, offset of the translations' table.
  if (content.size() < 20) throw Error("DEM002", "a message catalogue is too short").where(name);
  const std::uint32_t magic = read_word(content, 0, false, name);
  if (magic != 0x950412DE && magic != 0xDE120495) throw Error("DEM002", "not a GNU message catalogue").where(name);
  const bool big_endian = magic == 0xDE120495;
  const std::uint64_t count = read_word(content, 8, big_endian, name);
  const std::uint64_t table = read_word(content, 16, big_endian, name);
  if (table + count * 8 > content.size()) throw Error("DEM002", "the table leaves the catalogue").where(name);
  std::vector<std::string> messages;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t length = read_word(content, table + i * 8, big_endian, name);
    const std::uint64_t offset = read_word(content, table + i * 8 + 4, big_endian, name);
    if (offset + length > content.size()) throw Error("DEM002", "a message leaves the catalogue").where(name);
    for (std::string& form : split(content.substr(offset, length), '\0')) messages.push_back(std::move(form));
  }
  return messages;
}

std::vector<std::string> phrases_of_message(std::string_view message) {
  std::vector<std::string> phrases;
  if (!valid_utf8(message)) return phrases;
  std::string current;
  bool foreign = false;
  const auto finish = [&] {
    const std::vector<std::string> words = join_prefixes(words_of(current));
    const bool fits = !words.empty() && words.size() <= kMaxPhraseWords;
    const bool is_word = words.size() > 1 || (fits && count_code_points(words[0]) > 1);
    if (!foreign && fits && is_word) phrases.push_back(join(words, " "));
    current.clear();
    foreign = false;
  };
  for (std::size_t position = 0; position < message.size();) {
    const std::size_t begin = position;
    switch (role_of(next_code_point(message, position))) {
      case Role::kLetter:
        current += message.substr(begin, position - begin);
        break;
      case Role::kSpace:
        current += ' ';
        break;
      case Role::kDrop:
        break;
      case Role::kBreak:
        finish();
        break;
      case Role::kForeign:
        foreign = true;
        break;
    }
  }
  finish();
  return phrases;
}

AmharicText read_amharic_text(const std::string& message_folder) {
  const char* const kFix = "as root: apt-get install -y libreoffice-l10n-am";
  if (!directory_exists(message_folder)) {
    throw Error("DEM001", "the Amharic messages of LibreOffice are not installed").where(message_folder).fix(kFix);
  }
  std::set<std::string> phrases;
  for (const std::string& name : list_directory(message_folder)) {
    if (!ends_with(name, ".mo")) continue;
    const std::string path = path_join(message_folder, name);
    for (const std::string& message : parse_message_catalogue(read_file(path, kMaxCatalogueBytes), path)) {
      if (starts_with(message, "Project-Id-Version")) continue;
      for (std::string& phrase : phrases_of_message(message)) phrases.insert(std::move(phrase));
    }
  }
  if (phrases.size() < 1000) {
    throw Error("DEM001", concat("only ", phrases.size(), " Amharic phrases found")).where(message_folder).fix(kFix);
  }
  return {{phrases.begin(), phrases.end()}, dictionary_words()};
}

std::vector<std::string> make_sentences(const AmharicText& text, std::size_t count, std::uint64_t seed) {
  std::vector<std::string> order = text.phrases;
  RandomStream order_stream(seed, kOrderStream), stream(seed, kSentenceStream);
  shuffle(order, order_stream);
  std::size_t next = 0;
  std::set<std::string> seen;
  std::vector<std::string> sentences;
  while (sentences.size() < count) {
    const std::size_t wanted = 2 + stream.below(4);
    std::vector<std::string> parts;
    std::size_t words = 0;
    while (words < wanted) {
      std::string part;
      if (stream.below(8) == 0) {
        part = text.words[stream.below(text.words.size())];
      } else {
        if (next == order.size()) {
          next = 0;
          shuffle(order, order_stream);
        }
        part = order[next++];
      }
      const std::size_t more = words_of(part).size();
      if (words + more > 7) continue;
      words += more;
      parts.push_back(std::move(part));
    }
    std::string sentence = join(parts, " ") + "።";
    if (seen.insert(sentence).second) sentences.push_back(std::move(sentence));
  }
  return sentences;
}

}  // namespace train_gpt_v2
