#include "runtime/config.h"

#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

ABSL_DECLARE_FLAG(int32_t, turn_size_max);
ABSL_DECLARE_FLAG(bool, breaker);

namespace gaekju::runtime {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class ConfigTest : public testing::Test {
 protected:
  absl::FlagSaver saver_;  // restores the flags after each test
};

TEST_F(ConfigTest, DefaultsAreValid) {
  ASSERT_TRUE(ParseCommandLine(std::vector<std::string>{}, {}).ok());
  EXPECT_TRUE(CheckServerConfig(ServerConfigFromFlags()).ok());
}

TEST_F(ConfigTest, FlagsInEverySpelling) {
  const auto line =
      ParseCommandLine({"serve", "--turn_size_max=7", "payment", "--statement-timeout", "250ms",
                        "--nobreaker", "-log_level=debug", "--", "--not-a-flag"},
                       {});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_THAT(line->arguments, ElementsAre("serve", "payment", "--not-a-flag"));
  EXPECT_FALSE(line->help);
  const ServerConfig config = ServerConfigFromFlags();
  EXPECT_EQ(config.turn_size_max, 7);
  EXPECT_EQ(config.statement_timeout, absl::Milliseconds(250));
  EXPECT_FALSE(config.breaker);
  EXPECT_EQ(config.log_level, "debug");
}

TEST_F(ConfigTest, TheCommandLineWinsOverTheEnvironment) {
  ASSERT_TRUE(
      ParseCommandLine({"--turn_size_max=7"},
                       {"GAEKJU_TURN_SIZE_MAX=9", "GAEKJU_QUEUE_SIZE_MAX=99", "TURN_SIZE_MAX=1"})
          .ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_turn_size_max), 7);
  EXPECT_EQ(ServerConfigFromFlags().queue_size_max, 99);
}

TEST_F(ConfigTest, MistakesAreToldWithWhatToWriteInstead) {
  struct Case {
    std::vector<std::string> arguments, environment;
    const char* expected;
  } const cases[] = {
      {{"--turn_size=7"}, {}, "unknown flag --turn_size; did you mean --turn_size_max?"},
      {{"--peer=a=b"}, {}, "did you mean --peers?"},
      {{"--xyzzy-plugh"}, {}, "unknown flag --xyzzy-plugh (--help lists all)"},
      {{"--nolisten"}, {}, "unknown flag --nolisten; did you mean --listen?"},
      {{"--turn_size_max=many"}, {}, "--turn_size_max cannot be \"many\": write a whole number"},
      {{"--statement_timeout=5"}, {}, "write a duration with its unit"},
      {{"--breaker=perhaps"}, {}, "write true or false"},
      {{"--listen"}, {}, "--listen needs a value"},
      {{}, {"GAEKJU_TURN_SIZE_MAX=many"}, "GAEKJU_TURN_SIZE_MAX cannot be \"many\""},
  };
  for (const Case& c : cases) {
    const auto line = ParseCommandLine(c.arguments, c.environment);
    ASSERT_FALSE(line.ok()) << c.expected;
    EXPECT_EQ(line.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(line.status().message()), HasSubstr(c.expected));
  }
}

TEST_F(ConfigTest, KubernetesOwnVariablesAreNoMistake) {
  EXPECT_THAT(
      UnknownEnvironment(
          {"GAEKJU_ORDER_SERVICE_HOST=10.0.0.1", "GAEKJU_ORDER_SERVICE_PORT_GRPC=50051",
           "GAEKJU_ORDER_PORT_50051_TCP_PROTO=tcp", "GAEKJU_DESCRIPTOR_SET=x", "PATH=/bin"}),
      IsEmpty());
  EXPECT_THAT(UnknownEnvironment({"GAEKJU_LISTN=1", "GAEKJU_LISTEN=127.0.0.1:1"}),
              ElementsAre("GAEKJU_LISTN is no setting; did you mean GAEKJU_LISTEN?"));
}

TEST_F(ConfigTest, NoFlagHasANameThatKubernetesMakes) {
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    for (const char* end : {"port", "_host", "_addr", "_proto"}) {
      const std::string n(name), e(end);
      EXPECT_FALSE(n.size() >= e.size() && n.compare(n.size() - e.size(), e.size(), e) == 0) << n;
    }
  }
}

TEST_F(ConfigTest, HelpTellsEveryFlagItsVariableAndDefault) {
  const auto line = ParseCommandLine({"--help"}, {});
  ASSERT_TRUE(line.ok());
  EXPECT_TRUE(line->help);
  const std::string help = FlagHelp();
  EXPECT_THAT(help, HasSubstr("--turn_size_max=512   (GAEKJU_TURN_SIZE_MAX)"));
  EXPECT_THAT(help, HasSubstr("--statement_timeout=5s"));
  EXPECT_THAT(help, HasSubstr("[runtime/config]"));
  for (const char* word : {"postgresql://", "nats://", "order=127.0.0.1:50051", "Kubernetes"})
    EXPECT_THAT(help, HasSubstr(word));
  const std::string one = FlagHelp({"listen"});
  EXPECT_THAT(one, HasSubstr("--listen="));
  EXPECT_THAT(one, testing::Not(HasSubstr("--nats=")));
}

TEST_F(ConfigTest, ValuesOutOfRangeNameTheFlag) {
  const auto message_with = [](auto change) {
    ServerConfig config = ServerConfigFromFlags();
    change(config);
    return std::string(CheckServerConfig(config).message());
  };
  EXPECT_THAT(message_with([](ServerConfig& c) { c.turn_size_max = 0; }),
              HasSubstr("--turn_size_max must be at least 1"));
  EXPECT_THAT(message_with([](ServerConfig& c) { c.lock_timeout = absl::ZeroDuration(); }),
              HasSubstr("--lock_timeout"));
  EXPECT_THAT(message_with([](ServerConfig& c) { c.queue_size_max = 1; }),
              HasSubstr("--queue_size_max (1)"));
  EXPECT_THAT(message_with([](ServerConfig& c) { c.breaker_open = absl::Hours(1); }),
              HasSubstr("--breaker_open_max"));
  EXPECT_THAT(message_with([](ServerConfig& c) { c.drain_timeout = absl::Seconds(-1); }),
              HasSubstr("--drain_timeout"));
}

TEST_F(ConfigTest, EachContextHasItsDatabase) {
  ServerConfig config;
  config.database = "postgresql:///gaekju_{context}?host=/run";
  EXPECT_EQ(DatabaseOf(config, "payment"), "postgresql:///gaekju_payment?host=/run");
}

TEST_F(ConfigTest, OptionsCarryTheFlags) {
  ASSERT_TRUE(
      ParseCommandLine({"--rpc_deadline_default=1500ms", "--breaker_open=2s", "--peers=a=b:1"}, {})
          .ok());
  const ServerConfig config = ServerConfigFromFlags();
  EXPECT_EQ(RpcServerOptionsOf(config).deadline_ms_default, 1500);
  EXPECT_EQ(RpcClientOptionsOf(config).breaker.open_us, 2'000'000);
  EXPECT_EQ(RpcClientOptionsOf(config).peers, "a=b:1");
}

TEST_F(ConfigTest, FileLimitOnlyGrows) {
  const int64_t first = RaiseFileLimit();
  EXPECT_GT(first, 0);
  EXPECT_GE(RaiseFileLimit(), first);
}

}  // namespace
}  // namespace gaekju::runtime
