#pragma once
// Compares a checkpoint file with what Python reads from it: tests/support/torch_reader.py by the standard library's
// zipfile and pickle, and by torch itself where it can be imported.

#include <sys/wait.h>

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "support/test_files.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2::testing {

// The same description as torch_reader.py prints.
inline nlohmann::json describe(const Value& value) {
  using nlohmann::json;
  const auto hex = [](const std::string& bytes) {
    std::string text;
    for (const char c : bytes) {
      char digits[3];
      std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(c));
      text += digits;
    }
    return text;
  };
  switch (value.kind()) {
    case Value::Kind::kNone:
      return {{"none", nullptr}};
    case Value::Kind::kBool:
      return {{"bool", value.as_bool()}};
    case Value::Kind::kInt:
      return {{"int", std::to_string(value.as_int())}};
    case Value::Kind::kBigInt:
      return {{"int", value.big_int_text()}};
    case Value::Kind::kFloat: {
      char digits[17];
      std::snprintf(digits, sizeof digits, "%016lx", std::bit_cast<std::uint64_t>(value.as_double()));
      return {{"float", digits}};
    }
    case Value::Kind::kString:
      return {{"str", value.as_string()}};
    case Value::Kind::kBytes:
      return {{"bytes", hex(value.as_bytes())}};
    case Value::Kind::kTensor: {
      const Tensor tensor = value.as_tensor().contiguous();
      const std::string_view bytes(reinterpret_cast<const char*>(tensor.data), tensor.nbytes());
      return {{"tensor", json::array({std::string(dtype_name(tensor.dtype)), tensor.shape, sha256(bytes)})}};
    }
    case Value::Kind::kDict: {
      json entries = json::array();
      for (const Value::Entry& entry : value.entries()) {
        entries.push_back(json::array({describe(entry.key), describe(entry.value)}));
      }
      return {{value.is_ordered_dict() ? "ordered" : "dict", entries}};
    }
    default:
      break;
  }
  json items = json::array();
  for (const Value& item : value.items()) items.push_back(describe(item));
  return {{std::string(value.kind_name()), items}};
}

struct PythonReading {
  int status = -1;  // of the script; 127: no python3, 77: no torch
  nlohmann::json content;
};

// With `copy`: by torch, which also saves what it read under that name.
inline PythonReading read_with_python(const std::string& path, const std::string& copy = {}) {
  std::string command = "python3 '" + data_path("../support/torch_reader.py") + "' ";
  if (!copy.empty()) {
    command = "PYTHONPATH='" + torch_site() + "' " + command + "--torch ";
  }
  std::FILE* pipe =
      ::popen((command + "'" + path + "' " + (copy.empty() ? "" : "'" + copy + "'") + " 2>/dev/null").c_str(), "r");
  if (!pipe) return {};
  std::string output;
  std::array<char, 65536> buffer;
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe)) output.append(buffer.data(), got);
  PythonReading reading;
  const int status = ::pclose(pipe);
  reading.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  if (reading.status == 0) reading.content = nlohmann::json::parse(output);
  return reading;
}

}  // namespace train_gpt_v2::testing
