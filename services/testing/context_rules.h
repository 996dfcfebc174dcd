// context_rules.h: what holds for every context, whatever it decides. One line in each context's
// test:
//
//   TEST(Payment, FollowsTheRulesOfAContext) { testing::ExpectFollowsRules(PaymentContext()); }
#ifndef GAEKJU_SERVICES_TESTING_CONTEXT_RULES_H_
#define GAEKJU_SERVICES_TESTING_CONTEXT_RULES_H_

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "flow/turn.h"
#include "google/protobuf/descriptor.h"
#include "services/testing/turn_harness.h"

namespace gaekju::testing {

// Every RPC of the service is served exactly once, by something that takes its request; every
// column exists, in the resource and in the migrations; every filter is a column; names tell the
// same everywhere. Run from the root of the repository.
inline void ExpectFollowsRules(const flow::Context& context) {
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  const auto* service = pool->FindServiceByName(context.service);
  ASSERT_NE(service, nullptr) << context.service;
  EXPECT_EQ(service->file()->package(), absl::StrCat("gaekju.", context.name, ".v1"));

  std::map<std::string, int> served;
  for (const auto& handler : context.handlers) {
    ++served[handler->name()];
    const auto* method = pool->FindMethodByName(handler->name());
    ASSERT_NE(method, nullptr) << handler->name();
    EXPECT_EQ(method->input_type(), handler->request().GetDescriptor()) << handler->name();
  }
  for (const auto& query : context.gets) ++served[query.method];
  for (const auto& query : context.lists) ++served[query.method];
  for (const auto& query : context.watches) ++served[query.method];
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string& name = service->method(i)->full_name();
    EXPECT_EQ(served[name], 1) << name;
    served.erase(name);
  }
  for (const auto& [name, count] : served)
    ADD_FAILURE() << name << " is not of " << context.service;

  std::set<std::string> events;
  for (const auto& handler : context.events) {
    EXPECT_EQ(handler->name(), handler->request().GetTypeName());
    EXPECT_TRUE(events.insert(handler->name()).second) << "twice: " << handler->name();
  }

  const std::string path = absl::StrCat("services/", context.name, "/migrations/0001_create.sql");
  std::ifstream file(path);
  std::stringstream sql;
  sql << file.rdbuf();
  ASSERT_FALSE(sql.str().empty()) << path;
  std::string later;  // columns that came with a later migration
  for (const auto& entry : std::filesystem::directory_iterator(
           absl::StrCat("services/", context.name, "/migrations"))) {
    if (entry.path() == path) continue;
    std::ifstream migration(entry.path());
    later.append(std::istreambuf_iterator<char>(migration), std::istreambuf_iterator<char>());
  }
  const std::string all = sql.str() + later;
  std::set<const flow::Table*> tables(context.tables.begin(), context.tables.end());
  for (const flow::Table* table : context.tables) {
    const size_t begin = all.find(absl::StrCat("create table ", table->name, " ("));
    ASSERT_NE(begin, std::string::npos) << path << " does not create " << table->name;
    const std::string create = all.substr(begin, all.find(';', begin) - begin);
    for (const char* line :
         {"key text collate \"C\" primary key", "version bigint not null", "body bytea not null"}) {
      EXPECT_NE(create.find(line), std::string::npos) << table->name << " has no " << line;
    }
    for (const flow::Column& column : table->columns) {
      ColumnText(*table->prototype, column.path);  // aborts when there is no such field
      const std::string added =
          absl::StrCat("alter table ", table->name, " add column ", column.name, " ");
      EXPECT_TRUE(absl::StrContains(create, absl::StrCat("\n  ", column.name, " ")) ||
                  absl::StrContains(later, added))
          << table->name << " has no column " << column.name;
    }
  }

  auto expect_columns = [&](const std::string& method, const flow::Table* table,
                            const std::vector<std::string>& columns) {
    EXPECT_TRUE(tables.contains(table)) << method;
    const auto* request = pool->FindMethodByName(method)->input_type();
    for (const std::string& name : columns) {
      const auto* field = request->FindFieldByName(name);
      ASSERT_NE(field, nullptr) << method << " has no " << name;
      if (field->is_repeated()) continue;  // a column in the plural, or the key
      EXPECT_TRUE(std::any_of(table->columns.begin(), table->columns.end(),
                              [&](const flow::Column& column) { return column.name == name; }))
          << table->name << " has no column " << name << ", which " << method << " filters by";
    }
  };
  for (const auto& query : context.lists) expect_columns(query.method, query.table, query.filters);
  for (const auto& query : context.gets) {
    const auto* method = pool->FindMethodByName(query.method);
    EXPECT_NE(method->input_type()->FindFieldByName(query.key_field), nullptr) << query.method;
    EXPECT_NE(method->output_type()->FindFieldByName(query.response_field), nullptr)
        << query.method;
    const bool by_customer = method->input_type()->FindFieldByName("customer_id") != nullptr;
    expect_columns(
        query.method, query.table,
        by_customer ? std::vector<std::string>{"customer_id"} : std::vector<std::string>{});
  }
  if (context.timer.table != nullptr) {
    EXPECT_TRUE(tables.contains(context.timer.table));
  }
}

}  // namespace gaekju::testing

#endif  // GAEKJU_SERVICES_TESTING_CONTEXT_RULES_H_
