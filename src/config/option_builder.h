#pragma once
// How rows of the option table are written: TGV2_OPTION takes the member of Options and derives key, type and default
// from it; the methods of RowBuilder add what the type does not say. Private to the config layer.

#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "train_gpt_v2/config/option_table.h"

namespace train_gpt_v2 {

// One field of a struct that appears in a list of objects, with its access.
template <class Owner>
struct Field {
  FieldSpec spec;
  std::function<Json(const Owner&)> get;
  std::function<void(Owner&, const Json&)> set;
};

// The fields of such a struct; specialised next to the rows that use it.
template <class Owner>
const std::vector<Field<Owner>>& fields_of();

inline ValueSpec spec_of(ValueKind kind) {
  ValueSpec spec;
  spec.kind = kind;
  return spec;
}

// JSON <-> member, and the ValueSpec that the type alone implies. "" stands for null.
template <class T>
struct Codec {  // a struct in a list of objects
  static ValueSpec spec() {
    ValueSpec spec = spec_of(ValueKind::kObject);
    for (const auto& field : fields_of<T>()) spec.fields.push_back(field.spec);
    return spec;
  }
  static Json get(const T& value) {
    Json result = Json::object();
    for (const auto& field : fields_of<T>()) result[field.spec.name] = field.get(value);
    return result;
  }
  static void set(T& value, const Json& json) {
    for (const auto& field : fields_of<T>()) field.set(value, json.at(field.spec.name));
  }
};

template <>
struct Codec<bool> {
  static ValueSpec spec() { return spec_of(ValueKind::kBool); }
  static Json get(bool value) { return value; }
  static void set(bool& value, const Json& json) { value = json.get<bool>(); }
};

template <>
struct Codec<std::int64_t> {
  static ValueSpec spec() { return spec_of(ValueKind::kInteger); }
  static Json get(std::int64_t value) { return value; }
  static void set(std::int64_t& value, const Json& json) { value = json.get<std::int64_t>(); }
};

template <>
struct Codec<double> {
  static ValueSpec spec() { return spec_of(ValueKind::kNumber); }
  static Json get(double value) { return value; }
  static void set(double& value, const Json& json) { value = json.get<double>(); }
};

template <>
struct Codec<std::string> {
  static ValueSpec spec() { return spec_of(ValueKind::kText); }
  static Json get(const std::string& value) { return value.empty() ? Json(nullptr) : Json(value); }
  static void set(std::string& value, const Json& json) { value = json.is_null() ? "" : json.get<std::string>(); }
};

template <class T>
struct Codec<std::optional<T>> {
  static ValueSpec spec() {
    ValueSpec spec = Codec<T>::spec();
    spec.nullable = true;
    return spec;
  }
  static Json get(const std::optional<T>& value) { return value ? Codec<T>::get(*value) : Json(nullptr); }
  static void set(std::optional<T>& value, const Json& json) {
    if (json.is_null()) {
      value.reset();
    } else {
      Codec<T>::set(value.emplace(), json);
    }
  }
};

template <class T>
struct Codec<std::vector<T>> {
  static ValueSpec spec() {
    ValueSpec spec = Codec<T>::spec();
    spec.list = true;
    return spec;
  }
  static Json get(const std::vector<T>& value) {
    Json result = Json::array();
    for (const T& item : value) result.push_back(Codec<T>::get(item));
    return result;
  }
  static void set(std::vector<T>& value, const Json& json) {
    value.clear();
    for (const Json& item : json) Codec<T>::set(value.emplace_back(), item);
  }
};

template <class T>
struct Codec<std::vector<std::pair<std::string, T>>> {  // an object of module patterns; the order of the file counts
  static ValueSpec spec() {
    ValueSpec spec = Codec<T>::spec();
    spec.map = true;
    return spec;
  }
  static Json get(const std::vector<std::pair<std::string, T>>& value) {
    Json result = Json::object();
    for (const auto& [pattern, item] : value) result[pattern] = Codec<T>::get(item);
    return result;
  }
  static void set(std::vector<std::pair<std::string, T>>& value, const Json& json) {
    value.clear();
    for (const auto& [pattern, item] : json.items()) Codec<T>::set(value.emplace_back(pattern, T{}).second, item);
  }
};

// What can be said about a value, for rows and for fields of objects alike.
template <class Self>
class SpecBuilder {
 public:
  Self& range(double low, double high) { return at_least(low).at_most(high); }
  Self& at_least(double low) { return value().minimum = low, self(); }
  Self& at_most(double high) { return value().maximum = high, self(); }
  Self& above(double low) { return value().minimum = low, value().open_minimum = true, self(); }
  Self& below(double high) { return value().maximum = high, value().open_maximum = true, self(); }
  Self& choices(std::vector<std::string> allowed) { return value().choices = std::move(allowed), self(); }
  Self& items(std::size_t count) { return value().items = count, self(); }
  Self& because(std::string why) { return value().reason = std::move(why), self(); }
  Self& path() { return value().kind = ValueKind::kPath, self(); }
  Self& or_null() { return value().nullable = true, self(); }
  Self& checked(std::function<std::string(const std::string&)> test) {
    return value().text_problem = std::move(test), self();
  }

 private:
  Self& self() { return static_cast<Self&>(*this); }
  ValueSpec& value() { return self().spec_to_edit(); }
};

class RowBuilder : public SpecBuilder<RowBuilder> {
 public:
  explicit RowBuilder(OptionRow row) : row_(std::move(row)) {}
  RowBuilder& unit(std::string name) { return row_.unit = std::move(name), *this; }
  // 0 and null both switch it off (interface.md §2); `off` is how the member says so.
  RowBuilder& off_is(Json off) {
    row_.value.nullable = true;
    row_.set = [set = std::move(row_.set), stored = std::move(off)](Options& options, const Json& json) {
      set(options, json.is_null() || json == Json(0) ? stored : json);
    };
    return *this;
  }
  ValueSpec& spec_to_edit() { return row_.value; }
  operator OptionRow() const { return row_; }

 private:
  OptionRow row_;
};

template <class Owner>
class FieldBuilder : public SpecBuilder<FieldBuilder<Owner>> {
 public:
  explicit FieldBuilder(Field<Owner> field) : field_(std::move(field)) {}
  ValueSpec& spec_to_edit() { return field_.spec.value; }
  operator Field<Owner>() const { return field_; }

 private:
  Field<Owner> field_;
};

template <class Access>
RowBuilder make_option(std::string path, ResumeClass resume, std::string doc, Access access) {
  using Member = std::remove_cvref_t<decltype(access(std::declval<Options&>()))>;
  OptionRow row{
      .path = std::move(path), .doc = std::move(doc), .unit = "", .resume = resume, .value = {}, .get = {}, .set = {}};
  row.value = Codec<Member>::spec();
  row.get = [access](const Options& options) { return Codec<Member>::get(access(options)); };
  row.set = [access](Options& options, const Json& json) { Codec<Member>::set(access(options), json); };
  return RowBuilder(std::move(row));
}

template <class Owner, class Access>
FieldBuilder<Owner> make_field(std::string name, std::string doc, Access access) {
  using Member = std::remove_cvref_t<decltype(access(std::declval<Owner&>()))>;
  Field<Owner> field;
  field.spec = {std::move(name), std::move(doc), "", Codec<Member>::spec()};
  field.get = [access](const Owner& owner) { return Codec<Member>::get(access(owner)); };
  field.set = [access](Owner& owner, const Json& json) { Codec<Member>::set(access(owner), json); };
  return FieldBuilder<Owner>(std::move(field));
}

// A key of the reference's configuration that has one meaning here: checked, then ignored. `only` is JSON text, "" =
// any.
OptionRow accepted_only(std::string path, Json value, std::string only, std::string doc);

#define TGV2_OPTION(member, resume, doc) \
  make_option(                           \
      #member, ResumeClass::resume, doc, [](auto& options) -> auto& { return options.member; })
#define TGV2_FIELD(owner, member, doc) \
  make_field<owner>(                   \
      #member, doc, [](auto& o) -> auto& { return o.member; })

using OptionRows = std::vector<OptionRow>;
OptionRows model_rows();
OptionRows data_rows();      // init, data, sampler
OptionRows train_rows();     // train, optimizer, trainable
OptionRows schedule_rows();  // ema, validation, early_stopping, checkpoint, logging
OptionRows sampling_rows();
OptionRows peft_rows();  // peft, ewc

}  // namespace train_gpt_v2
