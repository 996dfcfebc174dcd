#include "runtime/metrics.h"
