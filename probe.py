"""The health probe: print what /health says; exit with 0 if the server is healthy, with 1 if it is not."""

import os
import sys
from http.client import HTTPConnection, HTTPException

connection = HTTPConnection("127.0.0.1", int(os.environ.get("PORT") or 80), timeout=2)
try:
    connection.request("GET", "/health", headers={"User-Agent": "cct-probe"})
    response = connection.getresponse()
    print(response.read().decode().strip())  # the engine keeps it in the health log
except (OSError, HTTPException) as error:
    sys.exit(f"no answer: {error}")
sys.exit(0 if response.status == 200 else 1)
