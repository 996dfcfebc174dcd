#include "runtime/rpc_client.h"
