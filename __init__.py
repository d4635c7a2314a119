"""privet: institutions train one model together, and each enforces and proves how much privacy it has spent."""

import os

__version__ = "0.1.0"

# gRPC reads it once, when it is imported: of TLS, only 1.3 works then (privacy/channel/credentials.py, rule 1).
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
