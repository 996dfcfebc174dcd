#include "runtime/breaker.h"
