"""The server of a CRDS behind a function URL: an event is a request, what is returned is the reply."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import lru_cache
from typing import Any

from mangum import Mangum

from caldp.crdserver.app import create
from caldp.crdserver.settings import from_environment

logging.getLogger("caldp").setLevel(os.environ.get("CALDP_LOG_LEVEL", "INFO"))
settings = from_environment(os.environ)


@lru_cache(maxsize=1)
def served(url: str) -> Mangum:
    """Return the application; it is neither started nor stopped, for jobs are taken up again by the clock."""
    return Mangum(create(replace(settings, url=url), os.environ), lifespan="off")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401 - as Lambda wants it
    """Answer a request; who has set no address is called what AWS calls this function, not what a client says."""
    return served(settings.url or f"https://{event['requestContext']['domainName']}")(event, context)
