#pragma once
// JSON as text. File names and texts from files need not be UTF-8, on which dump() alone throws: no result may be lost
// over that, so what is not UTF-8 becomes U+FFFD.

#include <nlohmann/json.hpp>
#include <string>

namespace train_gpt_v2 {

template <class Json>
std::string dump_json(const Json& document, int indent = -1) {
  return document.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace train_gpt_v2
