// The storefronts' book over a real directory and a real PostgreSQL. Looks are asked for (Poll()),
// so that nothing waits; one test has the book look by itself.
#include "services/order/order_service.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gaekju/storefront/v1/storefront_service.pb.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/text_format.h"
#include "google/rpc/code.pb.h"
#include "gtest/gtest.h"
#include "runtime/log.h"
#include "runtime/testing/postgres.h"
#include "services/order/storefront_service.h"
#include "services/order/verdict.h"

namespace gaekju::order {
namespace {

namespace fs = std::filesystem;
namespace v1 = gaekju::storefront::v1;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

runtime::Postgres& Server() {
  static runtime::Postgres server;  // ends with the process
  return server;
}

std::string ShopText(const std::string& id, const std::string& word = "Ordered") {
  return absl::StrCat(
      "id: \"", id, "\"\ndisplay_name { ko: \"가게\" en: \"Shop\" }\n", "currency_code: \"KRW\"\n",
      "place { step { id: \"price\" call: \"catalog.Quote\" via: GRPC } ",
      "step { id: \"pay\" call: \"payment.Capture\" via: GRPC after: \"price\" } }\n",
      "status { stage: PLACED code: \"ORDERED\" text { ko: \"", word, "\" en: \"", word,
      "\" } }\n");
}

// Two mistakes, on lines 4 and 5.
std::string WrongText(const std::string& id) {
  return absl::StrCat(
      "id: \"", id, "\"\ndisplay_name { ko: \"가게\" en: \"Shop\" }\n", "currency_code: \"KRW\"\n",
      "place { step { id: \"price\" call: \"catalog.Quote\" via: GRPC } ",
      "step { id: \"pay\" call: \"payment.Captur\" via: GRPC after: \"price\" } }\n",
      "status { done: \"nothing\" code: \"ORDERED\" text { ko: \"a\" en: \"a\" } }\n");
}

class StorefrontBookTest : public testing::Test {
 protected:
  StorefrontBookTest() {
    char path[] = "/tmp/gaekju-book-XXXXXX";
    directory_ = mkdtemp(path);
    pg_.conninfo = Server().CreateDatabase();
    std::vector<fs::path> migrations;
    for (const auto& entry : fs::directory_iterator("services/order/migrations"))
      migrations.push_back(entry.path());
    std::sort(migrations.begin(), migrations.end());
    auto pg = runtime::PgConnection::Connect(pg_);
    EXPECT_TRUE(pg.ok()) << pg.status();
    for (const fs::path& migration : migrations) {
      std::ifstream file(migration);
      const std::string sql((std::istreambuf_iterator<char>(file)),
                            std::istreambuf_iterator<char>());
      const absl::Status status = (*pg)->Script(sql);
      EXPECT_TRUE(status.ok()) << migration << ": " << status;
    }
    EXPECT_TRUE(runtime::ConfigureLog("error", "text").ok());
  }
  ~StorefrontBookTest() override { fs::remove_all(directory_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name, std::ios::binary) << text;
  }
  void Remove(const std::string& name) { ASSERT_TRUE(fs::remove(directory_ / name)); }

  absl::StatusOr<std::unique_ptr<StorefrontBook>> TryOpen() {
    StorefrontBookOptions options;
    options.directory = directory_.string();
    options.pg = pg_;
    options.poll_period = poll_period_;
    options.admit = admit_;
    options.contracts = contracts_;
    return StorefrontBook::Open(options);
  }
  std::unique_ptr<StorefrontBook> Open() {
    auto book = TryOpen();
    EXPECT_TRUE(book.ok()) << book.status();
    return book.ok() ? *std::move(book) : nullptr;
  }
  // What a change needs to be taken.
  static void PollTwice(StorefrontBook& book) {
    book.Poll();
    book.Poll();
  }
  static std::string RevisionOf(const StorefrontBook& book, const std::string& id) {
    const flow::Plan* plan = book.Current(id);
    return plan == nullptr ? "" : plan->revision;
  }
  static v1::StorefrontListing Listing(const StorefrontBook& book, const std::string& id) {
    const auto shop = book.FindShop(id);
    return shop.has_value() ? shop->listing : v1::StorefrontListing();
  }
  static std::vector<std::string> Mistakes(const StorefrontBook& book, const std::string& id) {
    const v1::StorefrontListing listing = Listing(book, id);
    return {listing.refused().mistakes().begin(), listing.refused().mistakes().end()};
  }

  fs::path directory_;
  runtime::PgOptions pg_;
  absl::Duration poll_period_ = absl::ZeroDuration();
  std::function<absl::Status(const flow::Plan&)> admit_;
  const google::protobuf::DescriptorPool* contracts_ =
      google::protobuf::DescriptorPool::generated_pool();
};

// ---------------------------------------------------------------- changes

TEST_F(StorefrontBookTest, AChangedFileServesNewOrdersAndOldOnesKeepTheirs) {
  Write("a.textproto", ShopText("a", "one"));
  auto book = Open();
  const flow::Plan* before = book->Current("a");
  ASSERT_NE(before, nullptr);
  Write("a.textproto", ShopText("a", "two"));
  PollTwice(*book);
  const flow::Plan* after = book->Current("a");
  ASSERT_NE(after, nullptr);
  EXPECT_NE(after->revision, before->revision);
  EXPECT_EQ(after->statuses[0].en, "two");
  EXPECT_EQ(book->Pinned("a", before->revision), before);
  EXPECT_EQ(Listing(*book, "a").revision(), after->revision);
  EXPECT_EQ(Listing(*book, "a").state(), v1::StorefrontListing::STATE_OPEN);
  EXPECT_EQ(Listing(*book, "a").display_name().ko(), "가게");
  EXPECT_EQ(Listing(*book, "a").currency_code(), "KRW");
  // Another process finds the old one in the database, and so does the next start.
  const std::string revision = before->revision;
  book = Open();
  EXPECT_EQ(book->Pinned("a", revision)->statuses[0].en, "one");
}

TEST_F(StorefrontBookTest, ANewFileOpensAStorefront) {
  Write("a.textproto", ShopText("a"));
  auto book = Open();
  EXPECT_EQ(book->Current("b"), nullptr);
  Write("b.textproto", ShopText("b"));
  PollTwice(*book);
  EXPECT_NE(book->Current("b"), nullptr);
  EXPECT_NE(book->Current("a"), nullptr);
}

TEST_F(StorefrontBookTest, WhatIsStillBeingWrittenWaits) {
  const std::string text = ShopText("a", "two");
  Write("a.textproto", ShopText("a", "one"));
  auto book = Open();
  const std::string before = RevisionOf(*book, "a");
  // Each of these is another text at each look, and the first is a right one: without a word for
  // PLACED.
  for (const size_t size : {text.rfind("status"), text.size() / 2, text.size() - 3}) {
    Write("a.textproto", text.substr(0, size));
    book->Poll();
    EXPECT_EQ(RevisionOf(*book, "a"), before) << size;
    EXPECT_FALSE(Listing(*book, "a").has_refused()) << size;
  }
  Write("a.textproto", text);
  book->Poll();
  EXPECT_EQ(RevisionOf(*book, "a"), before);
  book->Poll();
  EXPECT_EQ(book->Current("a")->statuses[0].en, "two");
}

// Kubernetes: the files are links through ..data, a link to a directory that is swapped for
// another.
TEST_F(StorefrontBookTest, ASwappedConfigMapIsAChange) {
  const auto version = [&](const std::string& name, const std::string& word) {
    fs::create_directory(directory_ / name);
    Write(name + "/a.textproto", ShopText("a", word));
    // The same size and time: only the content tells.
    fs::last_write_time(directory_ / name / "a.textproto",
                        fs::file_time_type(std::chrono::hours(1)));
  };
  version("..2026_01", "one");
  version("..2026_02", "two");
  fs::create_directory_symlink("..2026_01", directory_ / "..data");
  fs::create_symlink("..data/a.textproto", directory_ / "a.textproto");
  auto book = Open();
  EXPECT_EQ(book->Current("a")->statuses[0].en, "one");
  fs::create_directory_symlink("..2026_02", directory_ / "..data_tmp");
  fs::rename(directory_ / "..data_tmp", directory_ / "..data");
  PollTwice(*book);
  EXPECT_EQ(book->Current("a")->statuses[0].en, "two");
  // A link that leads nowhere is neither a change nor a file that is gone.
  fs::remove(directory_ / "..data");
  PollTwice(*book);
  EXPECT_EQ(book->Current("a")->statuses[0].en, "two");
}

TEST_F(StorefrontBookTest, ADirectoryThatCannotBeReadChangesNothing) {
  Write("a.textproto", ShopText("a"));
  auto book = Open();
  fs::rename(directory_, directory_.string() + ".away");
  PollTwice(*book);
  EXPECT_NE(book->Current("a"), nullptr);
  fs::rename(directory_.string() + ".away", directory_);
}

TEST_F(StorefrontBookTest, ItLooksByItself) {
  Write("a.textproto", ShopText("a"));
  poll_period_ = absl::Milliseconds(10);
  auto book = Open();
  Write("b.textproto", ShopText("b"));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (book->Current("b") == nullptr && std::chrono::steady_clock::now() < end)
    std::this_thread::yield();
  EXPECT_NE(book->Current("b"), nullptr);
}

// ---------------------------------------------------------------- wrong files

TEST_F(StorefrontBookTest, AWrongFileIsRefusedAndTheOldOneServes) {
  Write("a.textproto", ShopText("a"));
  auto book = Open();
  const std::string before = RevisionOf(*book, "a");
  testing::internal::CaptureStderr();
  Write("a.textproto", WrongText("a"));
  for (int i = 0; i < 5; ++i) book->Poll();
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(RevisionOf(*book, "a"), before);
  v1::StorefrontListing listing = Listing(*book, "a");
  EXPECT_EQ(listing.state(), v1::StorefrontListing::STATE_OPEN);
  EXPECT_EQ(listing.revision(), before);
  EXPECT_EQ(listing.refused().file(), "a.textproto");
  EXPECT_GT(listing.refused().refuse_time().seconds(), 0);
  EXPECT_THAT(Mistakes(*book, "a"),
              ElementsAre(AllOf(StartsWith("a.textproto:4:"), HasSubstr("payment.Captur")),
                          StartsWith("a.textproto:5:")));
  // All of it, once for the content and not for each look.
  const size_t first = log.find("storefront refused");
  EXPECT_NE(first, log.npos) << log;
  EXPECT_EQ(log.find("storefront refused", first + 1), log.npos) << log;
  EXPECT_THAT(log, AllOf(HasSubstr("a.textproto:4:"), HasSubstr("a.textproto:5:"),
                         HasSubstr(absl::StrCat("revision ", before))));

  Write("a.textproto", ShopText("a", "right again"));
  PollTwice(*book);
  EXPECT_EQ(book->Current("a")->statuses[0].en, "right again");
  EXPECT_FALSE(Listing(*book, "a").has_refused());
}

TEST_F(StorefrontBookTest, AWrongFilePutBackAsItWasIsRightAgain) {
  Write("a.textproto", ShopText("a"));
  auto book = Open();
  const v1::StorefrontListing before = Listing(*book, "a");
  Write("a.textproto", WrongText("a"));
  PollTwice(*book);
  EXPECT_TRUE(Listing(*book, "a").has_refused());
  Write("a.textproto", ShopText("a"));
  PollTwice(*book);
  EXPECT_EQ(Listing(*book, "a").SerializeAsString(), before.SerializeAsString());
}

TEST_F(StorefrontBookTest, AWrongNewFileIsListedAsClosedUntilItGoes) {
  Write("a.textproto", ShopText("a"));
  auto book = Open();
  Write("b.textproto", WrongText("b"));
  PollTwice(*book);
  EXPECT_EQ(book->Current("b"), nullptr);
  EXPECT_EQ(Listing(*book, "b").state(), v1::StorefrontListing::STATE_CLOSED);
  EXPECT_THAT(Mistakes(*book, "b"), testing::SizeIs(2));
  Remove("b.textproto");
  PollTwice(*book);
  EXPECT_FALSE(book->FindShop("b").has_value());
}

TEST_F(StorefrontBookTest, AFirstStartWaitsForWhatIsUndecidedAndALaterOneServesWhatItHas) {
  Write("a.textproto", ShopText("a"));
  Write("b.textproto", ShopText("b", "one"));
  int asked = 0;
  bool decided = true;
  admit_ = [&](const flow::Plan&) {
    return decided && ++asked > 4 ? absl::OkStatus() : absl::UnavailableError("is being proved");
  };
  auto book = Open();
  EXPECT_NE(book->Current("a"), nullptr);
  EXPECT_NE(book->Current("b"), nullptr);

  decided = false;
  const std::string before = RevisionOf(*book, "b");
  Write("b.textproto", ShopText("b", "two"));
  Write("c.textproto", ShopText("c"));
  book = Open();
  EXPECT_NE(book->Current("a"), nullptr);
  EXPECT_EQ(RevisionOf(*book, "b"), before);  // goes on, as it did in the last process
  EXPECT_EQ(book->Current("c"), nullptr);
  book->Poll();
  EXPECT_EQ(RevisionOf(*book, "b"), before);
  decided = true;
  book->Poll();
  EXPECT_NE(RevisionOf(*book, "b"), before);
  EXPECT_NE(book->Current("c"), nullptr);
}

TEST_F(StorefrontBookTest, AVerdictIsKeptUntilANewerCheckerHasAnother) {
  const auto found = [&](const char* revision) {
    const auto verdict = FindVerdict(pg_, "a", revision);
    EXPECT_TRUE(verdict.ok()) << verdict.status();
    return *verdict;
  };
  EXPECT_FALSE(found("1").has_value());
  Verdict verdict{.kind = Verdict::Kind::kViolated,
                  .checker_version = 2,
                  .budget_ms = 5000,
                  .told = "keeps money\n1. 주문"};
  ASSERT_TRUE(KeepVerdict(pg_, "a", "1", verdict).ok());
  EXPECT_FALSE(found("2").has_value());
  EXPECT_EQ(found("1")->kind, Verdict::Kind::kViolated);
  EXPECT_EQ(found("1")->checker_version, 2);
  EXPECT_EQ(found("1")->budget_ms, 5000);
  EXPECT_EQ(found("1")->told, verdict.told);
  // A replica of an older release does not overrule it.
  ASSERT_TRUE(
      KeepVerdict(pg_, "a", "1", {.kind = Verdict::Kind::kProved, .checker_version = 1}).ok());
  EXPECT_EQ(found("1")->kind, Verdict::Kind::kViolated);
  ASSERT_TRUE(
      KeepVerdict(pg_, "a", "1", {.kind = Verdict::Kind::kProved, .checker_version = 3}).ok());
  EXPECT_EQ(found("1")->kind, Verdict::Kind::kProved);
}

TEST_F(StorefrontBookTest, WhatIsNotAdmittedIsRefused) {
  Write("a.textproto", ShopText("a", "one"));
  std::vector<std::string> asked;
  admit_ = [&](const flow::Plan& plan) {
    asked.push_back(plan.statuses[0].en);
    if (plan.statuses[0].en == "later" && asked.size() == 3)
      return absl::UnavailableError("not now");
    if (plan.statuses[0].en == "bad")
      return absl::FailedPreconditionError("keeps money\nkeeps stock");
    return absl::OkStatus();
  };
  auto book = Open();
  Write("a.textproto", ShopText("a", "bad"));
  PollTwice(*book);
  book->Poll();
  EXPECT_EQ(book->Current("a")->statuses[0].en, "one");
  EXPECT_THAT(Mistakes(*book, "a"), ElementsAre("keeps money", "keeps stock"));
  Write("a.textproto", ShopText("a", "later"));
  PollTwice(*book);
  EXPECT_EQ(book->Current("a")->statuses[0].en, "one");
  book->Poll();
  EXPECT_EQ(book->Current("a")->statuses[0].en, "later");
  EXPECT_THAT(asked, ElementsAre("one", "bad", "later", "later"));
  // What was open is not asked about again at the next start.
  book = nullptr;
  book = Open();
  EXPECT_EQ(book->Current("a")->statuses[0].en, "later");
  EXPECT_THAT(asked, testing::SizeIs(4));
}

// ---------------------------------------------------------------- files that go

TEST_F(StorefrontBookTest, AStorefrontWhoseFileIsGoneIsClosedAndItsOrdersGoOn) {
  Write("a.textproto", ShopText("a"));
  Write("b.textproto", ShopText("b"));
  auto book = Open();
  const std::string revision = RevisionOf(*book, "a");
  Remove("a.textproto");
  book->Poll();
  EXPECT_NE(book->Current("a"), nullptr);  // perhaps it is only being replaced
  book->Poll();
  EXPECT_EQ(book->Current("a"), nullptr);
  EXPECT_NE(book->Current("b"), nullptr);
  EXPECT_EQ(book->Pinned("a", revision)->revision, revision);
  EXPECT_EQ(Listing(*book, "a").state(), v1::StorefrontListing::STATE_CLOSED);
  EXPECT_EQ(Listing(*book, "a").revision(), revision);
  Remove("b.textproto");
  PollTwice(*book);
  // The next start finds no file at all, and has orders to carry on.
  book = nullptr;
  book = Open();
  ASSERT_NE(book, nullptr);
  EXPECT_EQ(book->Current("a"), nullptr);
  EXPECT_EQ(Listing(*book, "a").state(), v1::StorefrontListing::STATE_CLOSED);
  EXPECT_EQ(Listing(*book, "a").display_name().en(), "Shop");
  EXPECT_EQ(book->Pinned("a", revision)->revision, revision);
  Write("a.textproto", ShopText("a"));
  PollTwice(*book);
  EXPECT_EQ(RevisionOf(*book, "a"), revision);
  EXPECT_EQ(Listing(*book, "a").state(), v1::StorefrontListing::STATE_OPEN);
}

TEST_F(StorefrontBookTest, AFileThatGoesWhileNobodyLooksCloses) {
  Write("a.textproto", ShopText("a"));
  Write("b.textproto", ShopText("b"));
  Open();
  Remove("a.textproto");
  Open();
  // It was found gone, so a wrong file opens nothing.
  Write("a.textproto", WrongText("a"));
  auto book = Open();
  EXPECT_EQ(book->Current("a"), nullptr);
  EXPECT_EQ(Listing(*book, "a").state(), v1::StorefrontListing::STATE_CLOSED);
  EXPECT_TRUE(Listing(*book, "a").has_refused());
}

// ---------------------------------------------------------------- starts

TEST_F(StorefrontBookTest, AStartWithAWrongFileGoesOnWithTheLastRightOne) {
  Write("a.textproto", ShopText("a", "one"));
  auto book = Open();
  Write("a.textproto", ShopText("a", "two"));
  PollTwice(*book);
  Write("a.textproto", ShopText("a", "one"));  // back again: the newest is the one opened last
  PollTwice(*book);
  book = nullptr;
  Write("a.textproto", WrongText("a"));
  book = Open();
  ASSERT_NE(book->Current("a"), nullptr);
  EXPECT_EQ(book->Current("a")->statuses[0].en, "one");
  EXPECT_EQ(Listing(*book, "a").state(), v1::StorefrontListing::STATE_OPEN);
  EXPECT_THAT(Mistakes(*book, "a"), testing::SizeIs(2));
}

TEST_F(StorefrontBookTest, AFirstStartNeedsOneRightFile) {
  EXPECT_THAT(TryOpen().status(),
              AllOf(testing::Property(&absl::Status::code, absl::StatusCode::kInvalidArgument)));
  Write("a.textproto", WrongText("a"));
  Write("c.textproto", WrongText("c"));
  const absl::Status status = TryOpen().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("a.textproto:4:"), HasSubstr("a.textproto:5:"),
                    HasSubstr("c.textproto:4:"), HasSubstr("c.textproto:5:")));
  Write("b.textproto", ShopText("b"));
  auto book = Open();
  EXPECT_NE(book->Current("b"), nullptr);
  EXPECT_EQ(book->Current("a"), nullptr);
  EXPECT_THAT(Mistakes(*book, "a"), testing::SizeIs(2));
  fs::remove_all(directory_);
  EXPECT_EQ(TryOpen().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(StorefrontBookTest, ARestartKeepsTheTimeOfOpening) {
  Write("a.textproto", ShopText("a"));
  const auto opened = [&] { return Listing(*Open(), "a").open_time().SerializeAsString(); };
  const std::string first = opened();
  EXPECT_EQ(opened(), first);
  Write("a.textproto", ShopText("a", "two"));
  EXPECT_NE(opened(), first);
}

TEST_F(StorefrontBookTest, AnotherReplicasRevisionComesFromTheDatabase) {
  Write("a.textproto", ShopText("a", "one"));
  auto one = Open();
  auto other = Open();
  Write("a.textproto", ShopText("a", "two"));
  PollTwice(*other);
  const flow::Plan* pinned = one->Pinned("a", RevisionOf(*other, "a"));
  EXPECT_EQ(pinned->statuses[0].en, "two");
  EXPECT_EQ(one->Current("a")->statuses[0].en, "one");
  PollTwice(*one);
  EXPECT_EQ(one->Current("a"), pinned);
  EXPECT_EQ(Listing(*one, "a").SerializeAsString(), Listing(*other, "a").SerializeAsString());
}

// ---------------------------------------------------------------- contracts that go

// A context that is told by --contracts, and a shop that calls it.
class Contracts {
 public:
  // `undo`: the contract has Wrap's undo; without it, no storefront may call it.
  explicit Contracts(bool undo = true) : pool_(google::protobuf::DescriptorPool::generated_pool()) {
    google::protobuf::FileDescriptorProto file;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(
        absl::StrCat(R"(name: "wrap.proto" package: "example.wrap.v1" syntax: "proto3"
          dependency: "gaekju/flow/v1/step.proto"
          message_type { name: "WrapRequest"
            field { name: "order_id" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "orderId" }
            field { name: "step_id" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "stepId" } }
          message_type { name: "WrapResponse" }
          service { name: "WrapService"
            method { name: "Wrap" input_type: ".example.wrap.v1.WrapRequest"
                     output_type: ".example.wrap.v1.WrapResponse")",
                     undo ? "options { [gaekju.flow.v1.step] { nothing_to_undo: true } }" : "",
                     " } }"),
        &file));
    EXPECT_NE(pool_.BuildFile(file), nullptr);
  }
  const google::protobuf::DescriptorPool& pool() const { return pool_; }

 private:
  google::protobuf::DescriptorPool pool_;
};

std::string WrappingShop(const std::string& id) {
  return absl::StrCat(
      "id: \"", id, "\"\ndisplay_name { ko: \"가게\" en: \"Shop\" }\n", "currency_code: \"KRW\"\n",
      "place { step { id: \"price\" call: \"catalog.Quote\" via: GRPC }\n",
      "step { id: \"wrap\" call: \"example.wrap.v1.WrapService.Wrap\" via: JETSTREAM } }\n",
      "status { stage: PLACED code: \"ORDERED\" text { ko: \"a\" en: \"a\" } }\n");
}

class UnreadableTest : public StorefrontBookTest {
 protected:
  UnreadableTest() {
    Write("a.textproto", ShopText("a"));
    Write("gifts.textproto", WrappingShop("gifts"));
  }
  std::unique_ptr<StorefrontBook> OpenWith(const google::protobuf::DescriptorPool* contracts) {
    contracts_ = contracts;
    return Open();
  }
  void PutOrder(const std::string& key, const std::string& storefront, int64_t due_us) {
    Sql(
        absl::StrCat("INSERT INTO orders (key, version, body, storefront, customer_id, state, "
                     "visible, due_time_us) VALUES ('",
                     key, "', 1, '', '", storefront, "', 'c', 2, true, ", due_us, ")"));
  }
  int64_t Due(const std::string& key) {
    auto pg = runtime::PgConnection::Connect(pg_);
    auto rows = (*pg)->Query("SELECT due_time_us FROM orders WHERE key = $1",
                             runtime::PgParams().Text(key));
    return rows.ok() && rows->rows() == 1 ? rows->Int(0, 0) : -1;
  }
  void Sql(const std::string& sql) {
    auto pg = runtime::PgConnection::Connect(pg_);
    const absl::Status status = (*pg)->Script(sql);
    ASSERT_TRUE(status.ok()) << status;
  }

  const Contracts full_;
  const Contracts changed_{/*undo=*/false};
};

TEST_F(UnreadableTest, ARevisionThatCannotBeReadHoldsItsOrdersAndEverythingElseIsServed) {
  auto book = OpenWith(&full_.pool());
  const std::string revision = RevisionOf(*book, "gifts");
  ASSERT_FALSE(revision.empty());
  EXPECT_TRUE(Listing(*book, "gifts").unreadable().empty());
  for (const auto* contracts :
       {google::protobuf::DescriptorPool::generated_pool(), &changed_.pool()}) {
    book = nullptr;
    book = OpenWith(contracts);
    ASSERT_NE(book, nullptr);
    EXPECT_NE(book->Current("a"), nullptr);
    EXPECT_EQ(book->Current("gifts"), nullptr);
    EXPECT_TRUE(Listing(*book, "gifts").unreadable().empty()) << "there are no orders of it";
    EXPECT_EQ(book->Pinned("gifts", revision), nullptr);
    EXPECT_EQ(book->Pinned("gifts", revision), nullptr);
    const v1::StorefrontListing listing = Listing(*book, "gifts");
    ASSERT_EQ(listing.unreadable_size(), 1);
    EXPECT_EQ(listing.unreadable(0).revision(), revision);
    ASSERT_EQ(listing.unreadable(0).mistakes_size(), 1);
    EXPECT_THAT(listing.unreadable(0).mistakes(0), HasSubstr("example.wrap.v1.WrapService"));
    EXPECT_EQ(book->Shops().at("gifts").listing.unreadable_size(), 1);
    EXPECT_TRUE(book->Shops().at("a").listing.unreadable().empty());
  }
  book = nullptr;
  book = OpenWith(&full_.pool());
  EXPECT_EQ(RevisionOf(*book, "gifts"), revision);
  EXPECT_EQ(book->Pinned("gifts", revision), book->Current("gifts"));
}

TEST_F(UnreadableTest, WhatIsUnderWayAndCannotBeReadIsKnownFromTheStart) {
  OpenWith(&full_.pool());
  PutOrder("o1", "gifts", 5);
  auto book = OpenWith(google::protobuf::DescriptorPool::generated_pool());
  EXPECT_EQ(Listing(*book, "gifts").unreadable_size(), 1);
  Sql("UPDATE orders SET due_time_us = -5");
  book = nullptr;
  book = Open();
  EXPECT_EQ(Listing(*book, "gifts").unreadable_size(), 1);
}

TEST_F(UnreadableTest, HeldOrdersAreReleasedByWhoCanReadThem) {
  const std::string revision = RevisionOf(*OpenWith(&full_.pool()), "gifts");
  PutOrder("held", "gifts", -7);
  PutOrder("by another replica", "a", -8);
  PutOrder("due", "gifts", 9);
  auto book = OpenWith(google::protobuf::DescriptorPool::generated_pool());
  book->Poll();
  EXPECT_EQ(Due("held"), -7);
  EXPECT_EQ(Due("by another replica"), 8);
  EXPECT_EQ(Due("due"), 9);
  book = nullptr;
  book = OpenWith(&full_.pool());
  book->Poll();
  EXPECT_EQ(Due("held"), 7);
  EXPECT_EQ(Due("due"), 9);
}

// No order may have a revision that the database does not know.
TEST_F(StorefrontBookTest, WhatCannotBeStoredWaits) {
  Write("a.textproto", ShopText("a", "one"));
  Write("b.textproto", ShopText("b"));
  auto book = Open();
  auto pg = runtime::PgConnection::Connect(pg_);
  ASSERT_TRUE((*pg)->Script("ALTER TABLE storefront_revisions RENAME TO away").ok());
  Write("a.textproto", ShopText("a", "two"));
  Remove("b.textproto");
  PollTwice(*book);
  EXPECT_EQ(book->Current("a")->statuses[0].en, "one");
  EXPECT_EQ(book->Current("b"), nullptr);  // closing needs nobody's leave
  ASSERT_TRUE((*pg)->Script("ALTER TABLE away RENAME TO storefront_revisions").ok());
  book->Poll();
  EXPECT_EQ(book->Current("a")->statuses[0].en, "two");
  // And what was closed meanwhile stays so.
  book = nullptr;
  Write("b.textproto", WrongText("b"));
  EXPECT_EQ(Open()->Current("b"), nullptr);
}

// ---------------------------------------------------------------- StorefrontService

class StorefrontServiceTest : public StorefrontBookTest {
 protected:
  template <class Response, class Request>
  Response Call(const StorefrontBook& book, const std::string& method, const Request& request) {
    const flow::Answer answer = Ask(book, method, request);
    EXPECT_EQ(answer.kind, flow::Answer::Kind::kDone) << answer.status.ShortDebugString();
    Response response;
    EXPECT_TRUE(response.ParseFromString(answer.payload));
    return response;
  }
  flow::Answer Ask(const StorefrontBook& book, const std::string& method,
                   const google::protobuf::Message& request) {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(kStorefrontService);
    auto pg = runtime::PgConnection::Connect(pg_);
    return AnswerStorefronts(book, *service->FindMethodByName(method), request,
                             with_database_ && pg.ok() ? pg->get() : nullptr);
  }
  bool with_database_ = true;
};

TEST_F(StorefrontServiceTest, ListsInPages) {
  for (const char* id : {"c", "a", "b"}) Write(absl::StrCat(id, ".textproto"), ShopText(id));
  auto book = Open();
  v1::ListStorefrontsRequest request;
  request.set_page_size(2);
  auto page = Call<v1::ListStorefrontsResponse>(*book, "ListStorefronts", request);
  ASSERT_EQ(page.storefronts_size(), 2);
  EXPECT_EQ(page.storefronts(0).id(), "a");
  EXPECT_EQ(page.storefronts(1).id(), "b");
  request.set_page_token(page.next_page_token());
  page = Call<v1::ListStorefrontsResponse>(*book, "ListStorefronts", request);
  ASSERT_EQ(page.storefronts_size(), 1);
  EXPECT_EQ(page.storefronts(0).id(), "c");
  EXPECT_EQ(page.next_page_token(), "");
  request.set_page_token("!");
  EXPECT_EQ(Ask(*book, "ListStorefronts", request).status.code(), google::rpc::INVALID_ARGUMENT);
  request.Clear();
  request.set_page_size(1001);
  EXPECT_EQ(Ask(*book, "ListStorefronts", request).status.code(), google::rpc::INVALID_ARGUMENT);
}

TEST_F(StorefrontServiceTest, ShowsAStorefrontAndItsOldRevisions) {
  const std::string one = ShopText("a", "one"), two = ShopText("a", "two");
  Write("a.textproto", one);
  auto book = Open();
  const std::string first = RevisionOf(*book, "a");
  Write("a.textproto", two);
  PollTwice(*book);
  v1::GetStorefrontRequest request;
  request.set_storefront("a");
  auto shown = Call<v1::GetStorefrontResponse>(*book, "GetStorefront", request);
  EXPECT_EQ(shown.textproto(), two);
  EXPECT_EQ(shown.revision(), RevisionOf(*book, "a"));
  EXPECT_EQ(shown.definition().place().step(1).call(), "payment.Capture");
  request.set_revision(first);
  shown = Call<v1::GetStorefrontResponse>(*book, "GetStorefront", request);
  EXPECT_EQ(shown.textproto(), one);
  EXPECT_EQ(shown.revision(), first);
  EXPECT_EQ(shown.definition().status(0).text().en(), "one");
  EXPECT_EQ(shown.listing().revision(), RevisionOf(*book, "a"));
  with_database_ = false;
  EXPECT_EQ(Ask(*book, "GetStorefront", request).status.code(), google::rpc::UNAVAILABLE);
  with_database_ = true;
  request.set_revision("0123456789abcdef");
  EXPECT_EQ(flow::ReasonOf(Ask(*book, "GetStorefront", request).status), "REVISION_UNKNOWN");
  request.set_storefront("nowhere");
  EXPECT_EQ(flow::ReasonOf(Ask(*book, "GetStorefront", request).status), "STOREFRONT_UNKNOWN");
}

}  // namespace
}  // namespace gaekju::order
