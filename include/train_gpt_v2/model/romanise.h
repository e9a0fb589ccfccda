#pragma once
// Ethiopic letters as the Latin letters that sound nearest, so that an old tokenizer can name a new piece
// (algorithms.md §8.1): "ሰላም" -> "selam". Used to start new vocabulary rows, never on training text.
//
// A letter is consonant row (block of eight code points) and vowel order: e u i a e - o wa; the sixth order is the bare
// consonant. ሀ ሐ ኀ and አ ዐ read "ha" and "a". Other characters pass unchanged, Ethiopic punctuation becomes a space.

#include <string>
#include <string_view>

namespace train_gpt_v2 {

// UTF-8 to UTF-8; malformed bytes pass unchanged.
std::string romanise(std::string_view text);

}  // namespace train_gpt_v2
