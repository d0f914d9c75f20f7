"""`ready.py SECONDS URL…`: waits until each URL answers 200, and names those that do not. Run by `helm test`."""

import sys
import time
import urllib.error
import urllib.request


def reason(url: str) -> str:
    """Return the reason why a URL does not answer 200; an empty text if it does."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        return f"{url} answered {error.code}: {error.read(500).decode(errors='replace').strip()}"
    except OSError as error:
        return f"{url} was not reached: {error}"
    return ""


end, urls = time.monotonic() + float(sys.argv[1]), sys.argv[2:]
while True:
    found = [each for each in map(reason, urls) if each]
    if not found or time.monotonic() > end:
        break
    time.sleep(1)
sys.exit("\n".join(found) or None)
