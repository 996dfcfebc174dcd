#include "runtime/testing/nats_server.h"
