"""What a consumer or a context of Gaekju needs in Python. clients/README.md says what goes over the wire.

    contracts    stubs of .proto files, and descriptor sets for `gaekju … --contracts`
    cloudevents  bus messages <-> events, both modes
    bus          a NATS connection, and a durable consumer that survives anything the bus does
    steps        makes a step and its undo idempotent, over SQLite
    context      serves a context's steps over JetStream and gRPC
    service      signals, log lines, health
"""
