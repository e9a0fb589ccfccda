#include "config_value.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

Value to_value(const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
      return json.get<std::int64_t>();
    case Json::value_t::number_unsigned:
      return json.get<std::uint64_t>();
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string:
      return json.get<std::string>();
    case Json::value_t::array: {
      Value list = Value::list();
      for (const Json& item : json) list.push_back(to_value(item));
      return list;
    }
    case Json::value_t::object: {
      Value dict = Value::dict();
      for (const auto& [key, item] : json.items()) dict.set(key, to_value(item));
      return dict;
    }
    default:
      return {};
  }
}

Json to_json(const Value& value, const std::string& place) {
  switch (value.kind()) {
    case Value::Kind::kNone:
      return nullptr;
    case Value::Kind::kBool:
      return value.as_bool();
    case Value::Kind::kInt:
      return value.as_int();
    case Value::Kind::kFloat:
      if (std::isfinite(value.as_double())) return value.as_double();
      break;
    case Value::Kind::kString:
      return value.as_string();
    case Value::Kind::kList:
    case Value::Kind::kTuple: {
      Json list = Json::array();
      for (const Value& item : value.items()) list.push_back(to_json(item, place));
      return list;
    }
    case Value::Kind::kDict: {
      Json object = Json::object();
      for (const auto& [key, item] : value.entries()) {
        const std::string& name = key.as_string("a key of " + place);
        object[name] = to_json(item, concat(place, ".", name));
      }
      return object;
    }
    default:
      break;
  }
  throw Error("CKP003", "the stored configuration holds something that is none")
      .at(place)
      .detail(std::string(value.kind_name()));
}

}  // namespace

Value config_value(const Options& options) {
  return to_value(Json::parse(effective_json(options)));
}

std::string config_text(const Value& value) {
  const Value* model = value.is_dict() ? value.find("model") : nullptr;
  return model && model->is_dict() ? dump_json(to_json(value, "config")) : "";
}

}  // namespace train_gpt_v2
