#include "runtime/rpc_server.h"
