#include "runtime/uuid.h"
