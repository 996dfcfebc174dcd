// shops.h: the adapters, each in its own file: facade/<shop>.cc. A new one is a line here, one in
// shops.cc, and one in CMakeLists.txt.
#ifndef GAEKJU_FACADE_SHOPS_H_
#define GAEKJU_FACADE_SHOPS_H_

#include "facade/facade.h"

namespace gaekju::facade {

Shop MyshopShop();
Shop FashionShop();
Shop MealkitShop();
Shop TshopShop();
Shop FunshopShop();

}  // namespace gaekju::facade

#endif  // GAEKJU_FACADE_SHOPS_H_
