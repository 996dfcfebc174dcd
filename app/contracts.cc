#include "app/contracts.h"

#include <map>
#include <set>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "app/context_list.h"
#include "app/files.h"
#include "gaekju/flow/v1/step.pb.h"
#include "google/protobuf/descriptor.pb.h"

ABSL_FLAG(std::string, contracts, "",
          "descriptor sets (FILE[,FILE…]) of contexts that are not part of this program; "
          "storefronts may then call them, at the address that --peers gives them");

namespace gaekju::app {
namespace {

using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptor;
using google::protobuf::FileDescriptorProto;
using google::protobuf::FileDescriptorSet;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;

constexpr char kHowTo[] =
    "; make it with: protoc --include_imports --descriptor_set_out=FILE.binpb FILE.proto";

absl::Status Wrong(absl::string_view file, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("--contracts: ", file, ": ", what));
}

class Collector : public DescriptorPool::ErrorCollector {
 public:
  void AddError(const std::string& file, const std::string& element,
                const google::protobuf::Message*, ErrorLocation,
                const std::string& message) override {
    lines_.push_back(absl::StrCat(file, ": ", element, ": ", message));
  }
  std::string text() const { return absl::StrJoin(lines_, "\n"); }

 private:
  std::vector<std::string> lines_;
};

// "example.giftwrap.v1" -> "giftwrap": what flow/storefront.cc calls the context.
std::string ContextOf(absl::string_view package) {
  std::vector<std::string> parts = absl::StrSplit(package, '.');
  const auto is_version = [](absl::string_view part) {
    return part.size() > 1 && part[0] == 'v' && absl::ascii_isdigit(part[1]);
  };
  while (parts.size() > 1 && is_version(parts.back())) parts.pop_back();
  return parts.back();
}

bool IsStep(const MethodDescriptor& method) {
  return method.options().HasExtension(gaekju::flow::v1::step);
}

// The same but for comments, which protoc only keeps when it is asked to.
std::string Content(FileDescriptorProto file) {
  file.clear_source_code_info();
  return file.SerializeAsString();
}

class Loader {
 public:
  Loader() : pool_(std::make_unique<DescriptorPool>(DescriptorPool::generated_pool())) {}

  absl::Status Add(const std::string& file) {
    auto bytes = ReadFile(file);
    if (!bytes.ok()) {
      return absl::Status(bytes.status().code(),
                          absl::StrCat("--contracts: ", bytes.status().message()));
    }
    FileDescriptorSet set;
    if (!set.ParseFromString(*bytes) || set.file_size() == 0)
      return Wrong(file, absl::StrCat("is not a descriptor set", kHowTo));
    files_.clear();
    building_.clear();
    has_step_ = false;
    for (const FileDescriptorProto& proto : set.file()) {
      if (proto.name().empty()) return Wrong(file, absl::StrCat("is not a descriptor set", kHowTo));
      files_[proto.name()] = &proto;
    }
    for (const FileDescriptorProto& proto : set.file()) {
      if (absl::Status status = Build(file, proto); !status.ok()) return status;
    }
    if (!has_step_) {
      return Wrong(file,
                   "has no RPC with the option (gaekju.flow.v1.step), so no storefront could call "
                   "anything of it");
    }
    return absl::OkStatus();
  }

  std::unique_ptr<DescriptorPool> Release() { return std::move(pool_); }

 private:
  absl::Status Build(const std::string& set, const FileDescriptorProto& proto) {
    if (const auto* linked = DescriptorPool::generated_pool()->FindFileByName(proto.name())) {
      return CheckLinked(set, proto, *linked);
    }
    if (const auto it = added_.find(proto.name()); it != added_.end()) {
      if (it->second.content == Content(proto)) {
        has_step_ |= it->second.has_step;
        return absl::OkStatus();
      }
      return Wrong(set, absl::StrCat("its ", proto.name(), " is not that of ", it->second.set,
                                     "; make both from the same files"));
    }
    if (!building_.insert(proto.name()).second)
      return Wrong(set, absl::StrCat(proto.name(), " imports itself"));
    for (const std::string& import : proto.dependency()) {
      if (pool_->FindFileByName(import) != nullptr) continue;
      const auto it = files_.find(import);
      if (it == files_.end()) {
        return Wrong(set, absl::StrCat(proto.name(), " imports ", import,
                                       ", which is not in the set", kHowTo));
      }
      if (absl::Status status = Build(set, *it->second); !status.ok()) return status;
    }
    Collector errors;
    const FileDescriptor* built = pool_->BuildFileCollectingErrors(proto, &errors);
    if (built == nullptr) return Wrong(set, absl::StrCat("is broken:\n", errors.text()));
    Added& added = added_[proto.name()];
    added = {.set = set, .content = Content(proto)};
    for (int i = 0; i < built->service_count(); ++i) {
      const ServiceDescriptor& service = *built->service(i);
      for (int m = 0; m < service.method_count(); ++m) added.has_step |= IsStep(*service.method(m));
    }
    has_step_ |= added.has_step;
    return added.has_step ? TakeName(set, *built) : absl::OkStatus();
  }

  // A file that is linked in too: ours is taken, and has to have what the set's has.
  static absl::Status CheckLinked(const std::string& set, const FileDescriptorProto& proto,
                                  const FileDescriptor& linked) {
    for (const auto& service : proto.service()) {
      const ServiceDescriptor* own = linked.FindServiceByName(service.name());
      for (const auto& method : service.method()) {
        const auto* found = own == nullptr ? nullptr : own->FindMethodByName(method.name());
        if (found != nullptr &&
            method.input_type() == absl::StrCat(".", found->input_type()->full_name()) &&
            method.output_type() == absl::StrCat(".", found->output_type()->full_name())) {
          continue;
        }
        return Wrong(set,
                     absl::StrCat("its ", proto.name(), " has ", service.name(), ".", method.name(),
                                  ", which is not so in this program's ", proto.name()));
      }
    }
    return absl::OkStatus();
  }

  // Commands, answers and addresses go by the context's name, so two cannot share one.
  absl::Status TakeName(const std::string& set, const FileDescriptor& file) {
    const std::string name = ContextOf(file.package());
    if (IsContext(name)) {
      return Wrong(set, absl::StrCat("package ", file.package(), " is the context \"", name,
                                     "\", which this program has itself; call the package "
                                     "otherwise"));
    }
    const auto [it, is_new] = packages_.try_emplace(name, file.package());
    if (is_new || it->second == file.package()) return absl::OkStatus();
    return Wrong(set, absl::StrCat("package ", file.package(), " is the context \"", name,
                                   "\", and so is ", it->second, "; call one otherwise"));
  }

  struct Added {
    std::string set;
    std::string content;
    bool has_step = false;
  };
  std::unique_ptr<DescriptorPool> pool_;
  std::map<std::string, Added> added_;           // by file, of all sets
  std::map<std::string, std::string> packages_;  // by context
  // Of the set that is being added.
  std::map<std::string, const FileDescriptorProto*> files_;
  std::set<std::string> building_;
  bool has_step_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DescriptorPool>> LoadContracts(
    const std::vector<std::string>& files) {
  Loader loader;
  for (const std::string& file : files) {
    if (absl::Status status = loader.Add(file); !status.ok()) return status;
  }
  return loader.Release();
}

std::vector<std::string> ContractFiles() {
  std::vector<std::string> files =
      absl::StrSplit(absl::GetFlag(FLAGS_contracts), ',', absl::SkipWhitespace());
  for (std::string& file : files)
    file = AbsolutePath(std::string(absl::StripAsciiWhitespace(file)));
  return files;
}

absl::StatusOr<const DescriptorPool*> ContractsFromFlag() {
  static const auto* const kLoaded =
      new absl::StatusOr<std::unique_ptr<DescriptorPool>>(LoadContracts(ContractFiles()));
  if (!kLoaded->ok()) return kLoaded->status();
  return (*kLoaded)->get();
}

}  // namespace gaekju::app
