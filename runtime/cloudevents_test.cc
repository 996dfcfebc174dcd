#include "runtime/cloudevents.h"
