#include "facade/shops.h"

namespace gaekju::facade {

const std::vector<Shop>& Shops() {
  static const auto* const kShops =
      new std::vector<Shop>{MyshopShop(), MealkitShop(), TshopShop(), FunshopShop(), FashionShop()};
  return *kShops;
}

}  // namespace gaekju::facade
