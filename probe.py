"""The health probe of app: print the answer of /health; exit with 0 if the server is healthy."""

import os
import sys
from http.client import HTTPConnection, HTTPException

port = int(os.environ.get("PORT") or 80)
connection = HTTPConnection("127.0.0.1", port, timeout=2)
try:
    connection.request("GET", "/health", headers={"User-Agent": "cct-probe"})
    response = connection.getresponse()
    print(response.read().decode().strip())  # the engine keeps this line in its health log
except (OSError, HTTPException) as error:
    sys.exit(f"no answer: {error}")
sys.exit(0 if response.status == 200 else 1)
