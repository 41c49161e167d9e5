#include "server/config/config_file.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/text_format.h>

#include "proto/config.pb.h"

namespace switchyard {
namespace {

using config::ServerConfig;
using google::protobuf::FieldDescriptor;
using google::protobuf::Reflection;

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 8;

// Keeps the first error, because it tends to be the cause of the others. Lines and columns count from 0 here.
class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text_.empty()) text_ = absl::StrCat("line ", line + 1, ", column ", column + 1, ": ", message);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

absl::StatusOr<ServerConfig> ParseText(const std::string& text) {
  if (text.size() > kMaxBytes) return absl::InvalidArgumentError("expected at most 1 MiB");
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.SetRecursionLimit(kMaxDepth);
  ServerConfig config;
  google::protobuf::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  if (parser.Parse(&stream, &config)) return config;
  return absl::InvalidArgumentError(error.text());
}

std::string FlagValue(const ServerConfig& config, const FieldDescriptor& field) {
  const Reflection& reflection = *config.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(config, &field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(reflection.GetInt32(config, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(reflection.GetInt64(config, &field));
    default:
      return reflection.GetString(config, &field);
  }
}

CLI::ConfigItem Item(const std::string& name, std::vector<std::string> values) {
  CLI::ConfigItem item;
  item.name = name;
  item.inputs = std::move(values);
  return item;
}

}  // namespace

absl::StatusOr<std::vector<CLI::ConfigItem>> ParseServerConfig(const std::string& text) {
  SY_ASSIGN_OR_RETURN(const ServerConfig config, ParseText(text));
  std::vector<const FieldDescriptor*> fields;
  config.GetReflection()->ListFields(config, &fields);
  std::vector<CLI::ConfigItem> items;
  for (const FieldDescriptor* field : fields) {
    if (!field->is_repeated()) items.push_back(Item(field->name(), {FlagValue(config, *field)}));
  }
  std::vector<std::string> models;
  for (const config::Model& model : config.model()) models.push_back(absl::StrCat(model.name(), "=", model.location()));
  if (!models.empty()) items.push_back(Item("model", std::move(models)));
  return items;
}

std::vector<CLI::ConfigItem> ServerConfigReader::from_config(std::istream& input) const {
  std::string text(kMaxBytes + 1, '\0');
  input.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(input.gcount()));
  auto items = ParseServerConfig(text);
  if (!items.ok()) throw CLI::FileError(absl::StrCat("--config: ", items.status().message()));
  return *std::move(items);
}

}  // namespace switchyard
