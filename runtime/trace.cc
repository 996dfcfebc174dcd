#include "runtime/trace.h"
