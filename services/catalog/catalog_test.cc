#include "services/catalog/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>

#include "flow/values.h"
#include "gaekju/catalog/v1/catalog_events.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "google/rpc/code.pb.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/requests.h"
#include "services/testing/step_rules.h"
#include "services/testing/turn_harness.h"

namespace gaekju::catalog {
namespace {

using flow::Answer;
using gaekju::catalog::v1::AdjustStockRequest;
using gaekju::catalog::v1::AdjustStockResponse;
using gaekju::catalog::v1::CreateProductRequest;
using gaekju::catalog::v1::CreateProductResponse;
using gaekju::catalog::v1::GetProductRequest;
using gaekju::catalog::v1::GetReservationRequest;
using gaekju::catalog::v1::ListProductsRequest;
using gaekju::catalog::v1::Product;
using gaekju::catalog::v1::QuoteRequest;
using gaekju::catalog::v1::QuoteResponse;
using gaekju::catalog::v1::ReleaseRequest;
using gaekju::catalog::v1::Reservation;
using gaekju::catalog::v1::ReserveRequest;
using gaekju::catalog::v1::ReserveResponse;
using google::rpc::ALREADY_EXISTS;
using google::rpc::FAILED_PRECONDITION;
using google::rpc::INVALID_ARGUMENT;
using google::rpc::NOT_FOUND;
using google::rpc::OUT_OF_RANGE;
using ::testing::ElementsAre;
using testing::FieldOf;
using ::testing::IsEmpty;

using Lines = std::vector<std::pair<std::string, int32_t>>;

CreateProductRequest Create(const std::string& product_id, int64_t price, int64_t count,
                            const std::string& currency_code = "KRW") {
  CreateProductRequest request;
  request.set_product_id(product_id);
  request.set_display_name("the " + product_id);
  request.mutable_unit_price()->set_currency_code(currency_code);
  request.mutable_unit_price()->set_minor_units(price);
  request.set_available_count(count);
  return request;
}

AdjustStockRequest Adjust(const std::string& product_id, int64_t delta_count,
                          const std::string& request_id) {
  AdjustStockRequest request;
  request.set_product_id(product_id);
  request.set_delta_count(delta_count);
  request.set_request_id(request_id);
  return request;
}

template <class Request = ReserveRequest>
Request Asking(const Lines& lines, const std::string& order_id = "o1",
               int64_t expected_total = -1) {
  Request request;
  request.set_order_id(order_id);
  request.set_step_id("stock");
  request.set_currency_code("KRW");
  for (const auto& [product_id, quantity] : lines) {
    auto* line = request.add_lines();
    line->set_product_id(product_id);
    line->set_quantity(quantity);
  }
  if (expected_total >= 0) {
    request.mutable_expected_total()->set_currency_code("KRW");
    request.mutable_expected_total()->set_minor_units(expected_total);
  }
  return request;
}

ReleaseRequest Release(const std::string& order_id = "o1") {
  ReleaseRequest request;
  request.set_order_id(order_id);
  request.set_step_id("stock");
  return request;
}

// Products: 10 tables at 100, 5 clocks at 7, 1 tv at 9 dollars, and gold at half of what 64 bits
// hold.
class CatalogTest : public ::testing::Test {
 protected:
  CatalogTest() {
    catalog_.Call(Create("table", 100, 10));
    catalog_.Call(Create("clock", 7, 5));
    catalog_.Call(Create("tv", 9, 1, "USD"));
    catalog_.Call(Create("gold", std::numeric_limits<int64_t>::max() / 2, 1000));
    catalog_.TakeEnvelopes();
  }

  // "<available>+<reserved>" of a product.
  std::string Stock(const std::string& product_id) {
    const Product* product = catalog_.Row<Product>(kProducts, product_id);
    GK_CHECK(product != nullptr) << product_id;
    return absl::StrCat(product->available_count(), "+", product->reserved_count());
  }
  const Reservation& Row(const std::string& key = "o1/stock") {
    const Reservation* reservation = catalog_.Row<Reservation>(kReservations, key);
    GK_CHECK(reservation != nullptr) << key;
    return *reservation;
  }

  testing::TurnHarness catalog_{CatalogContext()};
};

TEST(Catalog, FollowsTheRulesOfAContext) { testing::ExpectFollowsRules(CatalogContext()); }

TEST_F(CatalogTest, ReserveFollowsTheRulesOfAStep) {
  testing::ExpectFollowsStepRules(catalog_, kReservations, Asking({{"table", 2}, {"clock", 3}}),
                                  Asking({{"table", 2}}), Release());
  EXPECT_EQ(Stock("table"), "10+0");
  EXPECT_EQ(Stock("clock"), "5+0");
}

// --- products

TEST_F(CatalogTest, AProductIsCreatedOnce) {
  const Answer answer = catalog_.Call(Create("mask", 5, 3));
  CreateProductResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.product().product_id(), "mask");
  EXPECT_EQ(response.product().display_name(), "the mask");
  EXPECT_EQ(response.product().unit_price().minor_units(), 5);
  EXPECT_EQ(response.product().available_count(), 3);
  EXPECT_EQ(flow::ToMicros(response.product().create_time()), catalog_.now_us);
  EXPECT_EQ(response.product().request_fingerprint(), 0u) << "an inner matter";
  EXPECT_THAT(catalog_.TakeEvents(), ElementsAre("ProductCreated mask@1"));
  EXPECT_EQ(catalog_.Call(Create("mask", 5, 3)).kind, Answer::Kind::kDone);
  EXPECT_EQ(catalog_.written_count(), 0);
}

TEST_F(CatalogTest, ARepeatedCreateDoesNotBringStockBack) {
  catalog_.Call(Asking({{"clock", 5}}));
  EXPECT_EQ(catalog_.Call(Create("clock", 7, 5)).kind, Answer::Kind::kDone);
  EXPECT_EQ(Stock("clock"), "0+5");
}

TEST_F(CatalogTest, TheSameIdWithOtherContentIsRefused) {
  const Answer answer = catalog_.Call(Create("table", 101, 10));
  EXPECT_EQ(answer.status.code(), ALREADY_EXISTS);
  EXPECT_EQ(flow::ReasonOf(answer.status), "PRODUCT_EXISTS");
  EXPECT_EQ(catalog_.written_count(), 0);
}

TEST_F(CatalogTest, BadProductsNameTheField) {
  testing::ExpectNamesTheField(
      catalog_, Create("mask", 5, 3),
      {
          {"product_id", [](auto* r) { r->clear_product_id(); }},
          {"product_id", [](auto* r) { r->set_product_id("a/b"); }},
          {"display_name", [](auto* r) { r->set_display_name(std::string(257, 'x')); }},
          {"unit_price.currency_code", [](auto* r) { r->clear_unit_price(); }},
          {"unit_price.minor_units", [](auto* r) { r->mutable_unit_price()->set_minor_units(-1); }},
          {"available_count", [](auto* r) { r->set_available_count(-1); }},
          {"available_count", [](auto* r) { r->set_available_count(kStockCountMax + 1); }},
      });
}

TEST_F(CatalogTest, AFreeProductWithoutStockIsAllowed) {
  EXPECT_EQ(catalog_.Call(Create("leaflet", 0, 0)).kind, Answer::Kind::kDone);
}

TEST_F(CatalogTest, StockIsAdjustedOncePerRequestId) {
  const Answer answer = catalog_.Call(Adjust("table", 3, "r1"));
  AdjustStockResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.product().available_count(), 13);
  EXPECT_THAT(catalog_.TakeEvents(), ElementsAre("StockAdjusted table@2"));
  EXPECT_EQ(catalog_.Call(Adjust("table", 3, "r1")).payload, answer.payload);
  EXPECT_EQ(catalog_.written_count(), 0);
  catalog_.Call(Adjust("table", -13, "r2"));
  EXPECT_EQ(Stock("table"), "0+0");
}

TEST_F(CatalogTest, AdjustmentsThatCannotBeAreRefused) {
  catalog_.Call(Adjust("table", 3, "r1"));
  catalog_.TakeEnvelopes();
  struct Case {
    AdjustStockRequest request;
    int code;
    const char* reason;
    const char* field;
  };
  const Case cases[] = {
      {Adjust("", 1, "r"), INVALID_ARGUMENT, "FIELD_INVALID", "product_id"},
      {Adjust("table", 0, "r"), INVALID_ARGUMENT, "FIELD_INVALID", "delta_count"},
      {Adjust("table", kStockCountMax + 1, "r"), INVALID_ARGUMENT, "FIELD_INVALID", "delta_count"},
      {Adjust("table", std::numeric_limits<int64_t>::min(), "r"), INVALID_ARGUMENT, "FIELD_INVALID",
       "delta_count"},
      {Adjust("table", 1, ""), INVALID_ARGUMENT, "FIELD_INVALID", "request_id"},
      {Adjust("table", 4, "r1"), ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id"},
      {Adjust("nothing", 1, "r"), NOT_FOUND, "PRODUCT_UNKNOWN", "product_id"},
      {Adjust("table", -14, "r"), FAILED_PRECONDITION, "STOCK_SHORT", "delta_count"},
      {Adjust("table", kStockCountMax, "r"), FAILED_PRECONDITION, "STOCK_FULL", "delta_count"},
  };
  for (const Case& c : cases) {
    const Answer answer = catalog_.Call(c.request);
    EXPECT_EQ(answer.status.code(), c.code) << c.reason;
    EXPECT_EQ(flow::ReasonOf(answer.status), c.reason);
    EXPECT_EQ(FieldOf(answer), c.field) << c.reason;
    EXPECT_EQ(catalog_.written_count(), 0) << c.reason;
  }
  EXPECT_EQ(catalog_.Call(Adjust("table", -13, "r")).kind, Answer::Kind::kDone)
      << "a refusal takes no request_id";
}

TEST_F(CatalogTest, TheSameRequestIdForAnotherProductIsAnotherRequest) {
  catalog_.Call(Adjust("table", 1, "r1"));
  catalog_.Call(Adjust("clock", 1, "r1"));
  EXPECT_EQ(Stock("table"), "11+0");
  EXPECT_EQ(Stock("clock"), "6+0");
}

// --- prices

TEST_F(CatalogTest, AQuoteAddsUpAndWritesNothing) {
  const Answer answer = catalog_.Call(Asking<QuoteRequest>({{"table", 2}, {"clock", 3}}));
  QuoteResponse quote;
  ASSERT_TRUE(quote.ParseFromString(answer.payload));
  EXPECT_EQ(quote.amount().minor_units(), 221);
  EXPECT_EQ(quote.amount().currency_code(), "KRW");
  ASSERT_EQ(quote.lines_size(), 2);
  EXPECT_EQ(quote.lines(1).product_id(), "clock");
  EXPECT_EQ(quote.lines(1).display_name(), "the clock");
  EXPECT_EQ(quote.lines(1).quantity(), 3);
  EXPECT_EQ(quote.lines(1).unit_price().minor_units(), 7);
  EXPECT_EQ(catalog_.written_count(), 0);
}

TEST_F(CatalogTest, AQuoteAsksForNoStock) {
  EXPECT_EQ(catalog_.Call(Asking<QuoteRequest>({{"clock", 1000000}})).kind, Answer::Kind::kDone);
}

// The same refusals from both, in this precedence; the first line of the table that applies wins.
TEST_F(CatalogTest, RefusalsOfQuoteAndReserve) {
  struct Case {
    Lines lines;
    int code;
    const char* reason;
    const char* field;
    int64_t expected_total = -1;
  };
  const Case cases[] = {
      {{}, INVALID_ARGUMENT, "FIELD_INVALID", "lines"},
      {{{"table", 1}, {"clock", -1}}, INVALID_ARGUMENT, "FIELD_INVALID", "lines[1].quantity"},
      {{{"table", 1}, {"sofa", 1}}, NOT_FOUND, "PRODUCT_UNKNOWN", "lines[1].product_id"},
      {{{"tv", 1}, {"sofa", 1}}, NOT_FOUND, "PRODUCT_UNKNOWN", "lines[1].product_id"},
      {{{"table", 1}, {"tv", 1}}, FAILED_PRECONDITION, "CURRENCY_MISMATCH", "lines[1].product_id"},
      {{{"gold", 3}, {"tv", 1}}, FAILED_PRECONDITION, "CURRENCY_MISMATCH", "lines[1].product_id"},
      // A line overflows, and a sum.
      {{{"table", 1}, {"gold", 3}}, OUT_OF_RANGE, "AMOUNT_TOO_LARGE", "lines[1].quantity"},
      {{{"gold", 2}, {"table", 1}}, OUT_OF_RANGE, "AMOUNT_TOO_LARGE", "lines[1].quantity"},
      {{{"table", 2}}, FAILED_PRECONDITION, "PRICE_CHANGED", "expected_total.minor_units", 199},
      {{{"table", 2}}, FAILED_PRECONDITION, "PRICE_CHANGED", "expected_total.minor_units", 201},
  };
  for (const Case& c : cases) {
    const auto quote = Asking<QuoteRequest>(c.lines, "o", c.expected_total);
    const auto reserve = Asking(c.lines, absl::StrCat("o", &c - cases), c.expected_total);
    SCOPED_TRACE(reserve.ShortDebugString());
    for (const Answer& answer : {catalog_.Call(quote), catalog_.Call(reserve)}) {
      EXPECT_EQ(answer.status.code(), c.code);
      EXPECT_EQ(flow::ReasonOf(answer.status), c.reason);
      EXPECT_EQ(FieldOf(answer), c.field);
    }
  }
  EXPECT_EQ(Stock("table"), "10+0");
  EXPECT_EQ(Stock("gold"), "1000+0");
  EXPECT_THAT(catalog_.TakeEvents(), IsEmpty());
}

TEST_F(CatalogTest, BadPricingRequestsNameTheField) {
  struct Case {
    const char* field;
    std::function<void(ReserveRequest*)> spoil;
  };
  const Case cases[] = {
      {"order_id", [](auto* r) { r->clear_order_id(); }},
      {"step_id", [](auto* r) { r->clear_step_id(); }},
      {"lines[0].product_id", [](auto* r) { r->mutable_lines(0)->clear_product_id(); }},
      {"currency_code", [](auto* r) { r->set_currency_code("krw"); }},
      {"expected_total.currency_code",
       [](auto* r) { r->mutable_expected_total()->set_minor_units(1); }},
      {"expected_total.minor_units",
       [](auto* r) {
         r->mutable_expected_total()->set_currency_code("KRW");
         r->mutable_expected_total()->set_minor_units(-1);
       }},
  };
  for (const Case& c : cases) {
    ReserveRequest request = Asking({{"table", 1}});
    c.spoil(&request);
    QuoteRequest quote;
    ASSERT_TRUE(quote.ParseFromString(request.SerializeAsString()));  // the same fields
    EXPECT_EQ(FieldOf(catalog_.Call(request)), c.field);
    EXPECT_EQ(FieldOf(catalog_.Call(quote)), c.field);
  }
}

TEST_F(CatalogTest, TheExpectedTotalMustBeInTheShopsCurrency) {
  auto request = Asking<QuoteRequest>({{"table", 2}}, "o1", 200);
  EXPECT_EQ(catalog_.Call(request).kind, Answer::Kind::kDone);
  request.mutable_expected_total()->set_currency_code("USD");
  const Answer answer = catalog_.Call(request);
  EXPECT_EQ(flow::ReasonOf(answer.status), "CURRENCY_MISMATCH");
  EXPECT_EQ(FieldOf(answer), "expected_total.currency_code");
}

TEST_F(CatalogTest, AnEmptyExpectedTotalIsNone) {
  auto request = Asking<QuoteRequest>({{"table", 2}});
  request.mutable_expected_total();
  EXPECT_EQ(catalog_.Call(request).kind, Answer::Kind::kDone);
}

// --- stock

TEST_F(CatalogTest, ReserveTakesAllLines) {
  const Answer answer = catalog_.Call(Asking({{"table", 2}, {"clock", 5}}, "o1", 235));
  ReserveResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.amount().minor_units(), 235);
  EXPECT_EQ(response.lines_size(), 2);
  EXPECT_EQ(Stock("table"), "8+2");
  EXPECT_EQ(Stock("clock"), "0+5");
  EXPECT_EQ(Row().state(), Reservation::STATE_HELD);
  EXPECT_EQ(Row().amount().minor_units(), 235);
  EXPECT_THAT(catalog_.TakeEvents(), ElementsAre("StockReserved o1/stock@1"));
}

TEST_F(CatalogTest, ReserveTakesAllOrNone) {
  const Answer answer = catalog_.Call(Asking({{"table", 2}, {"clock", 6}}));
  EXPECT_EQ(answer.status.code(), FAILED_PRECONDITION);
  EXPECT_EQ(flow::ReasonOf(answer.status), "STOCK_SHORT");
  EXPECT_EQ(FieldOf(answer), "lines[1].quantity");
  EXPECT_EQ(Stock("table"), "10+0");
  EXPECT_EQ(Stock("clock"), "5+0");
  EXPECT_EQ(Row().state(), Reservation::STATE_REFUSED);
  EXPECT_THAT(catalog_.TakeEvents(), IsEmpty());
  catalog_.Call(Adjust("clock", 1, "r1"));
  EXPECT_EQ(flow::ReasonOf(catalog_.Call(Asking({{"table", 2}, {"clock", 6}})).status),
            "STOCK_SHORT")
      << "the same step keeps its answer";
}

TEST_F(CatalogTest, LinesOfOneProductAreAddedUp) {
  EXPECT_EQ(flow::ReasonOf(
                catalog_.Call(Asking({{"clock", 3}, {"table", 1}, {"clock", 3}}, "o1")).status),
            "STOCK_SHORT");
  ReserveResponse response;
  ASSERT_TRUE(response.ParseFromString(
      catalog_.Call(Asking({{"clock", 3}, {"table", 1}, {"clock", 2}}, "o2")).payload));
  ASSERT_EQ(response.lines_size(), 2);
  EXPECT_EQ(response.lines(0).quantity(), 5);
  EXPECT_EQ(response.amount().minor_units(), 135);
  EXPECT_EQ(Stock("clock"), "0+5");
  catalog_.Call(Release("o2"));
  EXPECT_EQ(Stock("clock"), "5+0");
}

TEST_F(CatalogTest, ReleaseGivesBack) {
  catalog_.Call(Asking({{"table", 2}, {"clock", 5}}));
  EXPECT_EQ(catalog_.Call(Release()).kind, Answer::Kind::kDone);
  EXPECT_EQ(catalog_.retry_count(), 1) << "the products are known once the reservation is loaded";
  EXPECT_EQ(Stock("table"), "10+0");
  EXPECT_EQ(Stock("clock"), "5+0");
  EXPECT_EQ(Row().state(), Reservation::STATE_RELEASED);
  EXPECT_THAT(catalog_.TakeEvents(),
              ElementsAre("StockReserved o1/stock@1", "StockReleased o1/stock@2"));
}

TEST_F(CatalogTest, AReleaseThatComesFirstMovesNoStock) {
  EXPECT_EQ(catalog_.Call(Release()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Reservation::STATE_RELEASED);
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_EQ(Stock("table"), "10+0");
  EXPECT_THAT(catalog_.TakeEvents(), IsEmpty());
}

TEST_F(CatalogTest, TheReleaseOfARefusalGivesNothingBack) {
  catalog_.Call(Asking({{"clock", 6}}));
  EXPECT_EQ(catalog_.Call(Release()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Reservation::STATE_REFUSED);
  EXPECT_EQ(Stock("clock"), "5+0");
  EXPECT_THAT(catalog_.TakeEvents(), IsEmpty());
}

TEST_F(CatalogTest, TheLastOneGoesToWhoeverComesFirstInTheTurn) {
  const auto first = Asking({{"clock", 4}}, "o1");
  const auto second = Asking({{"clock", 2}}, "o2");
  const auto third = Asking({{"clock", 1}}, "o3");
  const auto answers = catalog_.CallTogether({&first, &second, &third});
  EXPECT_EQ(answers[0].kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(answers[1].status), "STOCK_SHORT");
  EXPECT_EQ(answers[2].kind, Answer::Kind::kDone);
  EXPECT_EQ(Stock("clock"), "0+5");
}

TEST_F(CatalogTest, APriceChangeDoesNotTouchWhatIsReserved) {
  const Answer answer = catalog_.Call(Asking({{"clock", 2}}));
  Product dearer = *catalog_.Row<Product>(kProducts, "clock");
  dearer.mutable_unit_price()->set_minor_units(8);
  catalog_.Put(kProducts, "clock", dearer);
  EXPECT_EQ(catalog_.Call(Asking({{"clock", 2}})).payload, answer.payload);
  EXPECT_EQ(Row().amount().minor_units(), 14);
  ReserveResponse other;
  ASSERT_TRUE(other.ParseFromString(catalog_.Call(Asking({{"clock", 2}}, "o2")).payload));
  EXPECT_EQ(other.amount().minor_units(), 16);
}

TEST_F(CatalogTest, ReadsShowRowsWithoutWhatIsKeptInside) {
  GetProductRequest get;
  get.set_product_id("table");
  const auto product = catalog_.Get(get);
  ASSERT_NE(product, nullptr);
  EXPECT_EQ(static_cast<const Product&>(*product).available_count(), 10);
  EXPECT_EQ(static_cast<const Product&>(*product).request_fingerprint(), 0u);
  get.set_product_id("sofa");
  EXPECT_EQ(catalog_.Get(get), nullptr);

  catalog_.Call(Asking({{"clock", 1}}));
  GetReservationRequest get_reservation;
  get_reservation.set_reservation_id("o1/stock");
  const auto reservation = catalog_.Get(get_reservation);
  ASSERT_NE(reservation, nullptr);
  EXPECT_FALSE(static_cast<const Reservation&>(*reservation).has_step());

  std::vector<std::string> ids;
  for (const auto& row : catalog_.List(ListProductsRequest())) {
    ids.push_back(static_cast<const Product&>(*row).product_id());
  }
  EXPECT_THAT(ids, ElementsAre("clock", "gold", "table", "tv"));
}

// Any order of creations, adjustments, reservations, releases and repeats, alone and together in
// turns.
TEST(CatalogProperty, StockIsConservedAndNeverBelowZero) {
  for (const uint64_t seed : testing::Seeds(200)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    testing::TurnHarness catalog(CatalogContext());
    std::map<std::string, int64_t> owned;  // created with + adjusted by
    std::map<std::string, bool> counted;   // adjustments that were done
    for (const std::string product_id : {"a", "b", "c"}) {
      owned[product_id] = testing::Pick(random, 20);
      catalog.Call(Create(product_id, 1 + testing::Pick(random, 9), owned[product_id]));
    }
    for (int turn = 0; turn < 40; ++turn) {
      testing::Batch batch;
      for (int i = testing::Pick(random, 5); i >= 0; --i) {
        const std::string order_id = absl::StrCat("o", testing::Pick(random, 8));
        const std::string product_id(1, static_cast<char>('a' + testing::Pick(random, 3)));
        switch (testing::Pick(random, 4)) {
          case 0: {
            const int number = testing::Pick(random, 12);
            // The number decides the change, so that a repeat is one; one in ten reuses it with
            // other content.
            batch.Add(
                Adjust(product_id,
                       number - 7 == 0 ? 1 : number - 7 + (testing::Pick(random, 10) == 0 ? 20 : 0),
                       absl::StrCat("r", number)));
            break;
          }
          case 1:
            batch.Add(Release(order_id));
            break;
          default:
            batch.Add(Asking({{product_id, 1 + testing::Pick(random, 6)},
                              {std::string(1, static_cast<char>('a' + testing::Pick(random, 3))),
                               1 + testing::Pick(random, 3)}},
                             order_id));
        }
      }
      const auto answers = batch.Run(catalog);
      for (size_t i = 0; i < batch.size(); ++i) {
        const auto* adjust = dynamic_cast<const AdjustStockRequest*>(&batch[i]);
        if (adjust == nullptr || answers[i].kind != Answer::Kind::kDone) continue;
        if (counted.emplace(adjust->product_id() + "/" + adjust->request_id(), true).second) {
          owned[adjust->product_id()] += adjust->delta_count();
        }
      }

      std::map<std::string, int64_t> held;
      for (const auto& [key, row] : catalog.Rows(kReservations)) {
        const auto& reservation = static_cast<const Reservation&>(*row.body);
        if (reservation.state() != Reservation::STATE_HELD) continue;
        ASSERT_EQ(reservation.step().undo(), flow::Outcome::OUTCOME_UNSPECIFIED)
            << key << " was taken back and holds";
        for (const auto& line : reservation.lines()) held[line.product_id()] += line.quantity();
      }
      for (const auto& [key, row] : catalog.Rows(kProducts)) {
        const auto& product = static_cast<const Product&>(*row.body);
        ASSERT_GE(product.available_count(), 0) << key;
        ASSERT_EQ(product.reserved_count(), held[key]) << key;
        ASSERT_EQ(product.available_count() + product.reserved_count(), owned[key]) << key;
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::catalog
